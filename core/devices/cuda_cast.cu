#include <algorithm>

#include "core/devices/cast_bits.h"
#include "core/devices/cuda_cast.h"

namespace ditserve {
namespace {

#include "core/devices/cuda_cast_kernel.inc"

}  // namespace

cudaError_t CudaCast(const void* source, DType from, const Roundings& through, void* target, DType to, int64_t count,
                     cudaStream_t stream) {
  const CastLaunch launch = LaunchOf(source, from, through, target, to, count);
  CastKernel<<<launch.blocks, kThreads, 0, stream>>>(source, launch.from, launch.through, target, launch.to,
                                                     launch.head, launch.count);
  return cudaGetLastError();
}

}  // namespace ditserve
