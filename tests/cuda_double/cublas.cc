#include "tests/cuda_double/cublas.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>

#include <map>
#include <mutex>

namespace ditserve::cuda_double {
namespace {

std::mutex mutex;
int64_t workspace_bytes = kCublasWorkspaceBytes;

std::map<int, c10::DataPtr>& Workspaces() {
  static auto* const workspaces = new std::map<int, c10::DataPtr>();
  return *workspaces;
}

}  // namespace

void SetCublasWorkspaceBytes(int64_t bytes) {
  const std::scoped_lock lock(mutex);
  workspace_bytes = bytes;
}

void NeedCublasWorkspace() {
  const std::scoped_lock lock(mutex);
  c10::DataPtr& workspace = Workspaces()[c10::cuda::current_device()];
  if (!workspace) workspace = c10::cuda::CUDACachingAllocator::get()->allocate(static_cast<size_t>(workspace_bytes));
}

}  // namespace ditserve::cuda_double

namespace at::cuda {

void clearCublasWorkspaces() {
  const std::scoped_lock lock(ditserve::cuda_double::mutex);
  ditserve::cuda_double::Workspaces().clear();
}

}  // namespace at::cuda
