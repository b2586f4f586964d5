#include "core/devices/cuda_float8_operands.h"
#include "core/devices/float8_rows.h"

namespace ditserve {
namespace {

template <typename Act>
__device__ void ForThreads(Act act) {
  act(static_cast<int>(threadIdx.x));
}

// Called once in a kernel, by all threads of a block.
template <typename Find>
__device__ unsigned LargestOfThreads(Find find) {
  constexpr unsigned kWarp = 32;
  __shared__ unsigned of_warps[32];
  unsigned largest = find(static_cast<int>(threadIdx.x));
  for (unsigned apart = kWarp / 2; apart > 0; apart /= 2) {
    largest = max(largest, __shfl_xor_sync(~0u, largest, apart));
  }
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = largest;
  __syncthreads();
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) largest = max(largest, of_warps[warp]);
  return largest;
}

#include "core/devices/cuda_float8_operands_kernel.inc"

}  // namespace

cudaError_t CudaMakeFloat8Operands(const Float8Operands& operands, cudaStream_t stream) {
  Float8OperandsKernel<<<BlocksOf(operands), kThreads, 0, stream>>>(operands);
  return cudaGetLastError();
}

}  // namespace ditserve
