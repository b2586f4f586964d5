#ifndef DITSERVE_TESTS_CUDA_DOUBLE_CUBLAS_H_
#define DITSERVE_TESTS_CUDA_DOUBLE_CUBLAS_H_

#include <cstdint>

namespace ditserve::cuda_double {

// As much as a product takes of a device's memory here, unless a test says otherwise; LibTorch's would take some 32
// MiB.
inline constexpr int64_t kCublasWorkspaceBytes = 2 << 20;

// Of workspaces that are taken from now on.
void SetCublasWorkspaceBytes(int64_t bytes);

// A product is computed on the current device: as LibTorch's first one does, it takes a workspace there, in the memory
// of the tensors that this thread makes. It stays until at::cuda::clearCublasWorkspaces.
void NeedCublasWorkspace();

}  // namespace ditserve::cuda_double

#endif  // DITSERVE_TESTS_CUDA_DOUBLE_CUBLAS_H_
