// The body of the cast kernel, compiled for the host: threads one after the other. Where nvcc is missing, it launches
// it too.
#include <algorithm>

#include "core/devices/cast_bits.h"
#include "core/devices/cuda_cast.h"
#include "tests/cuda_double/cuda_double.h"

namespace ditserve {
namespace {

// A thread of the kernel.
struct HostThread {
  dim3 gridDim, blockDim, blockIdx, threadIdx;  // NOLINT(readability-identifier-naming): CUDA's names.
#include "core/devices/cuda_cast_kernel.inc"
};

template <typename Value>
const Value& Argument(void** arguments, int index) {
  return *static_cast<const Value*>(arguments[index]);
}

cuda_double::KernelWork Body(dim3 grid, dim3 block, void** arguments) {
  const auto from = Argument<DType>(arguments, 1), to = Argument<DType>(arguments, 4);
  const auto through = Argument<Roundings>(arguments, 2);
  const auto head = Argument<int64_t>(arguments, 5), count = Argument<int64_t>(arguments, 6);
  return {{{Argument<const void*>(arguments, 0), count * SizeOf(from), false},
           {Argument<void*>(arguments, 3), count * SizeOf(to), true}},
          [=](const std::vector<std::byte*>& found) {
            HostThread thread = {grid, block, {}, {}};
            for (thread.blockIdx.x = 0; thread.blockIdx.x < grid.x; ++thread.blockIdx.x) {
              for (thread.threadIdx.x = 0; thread.threadIdx.x < block.x; ++thread.threadIdx.x) {
                thread.CastKernel(found[0], from, through, found[1], to, head, count);
              }
            }
          }};
}

[[maybe_unused]] const bool kRegistered = [] {
  cuda_double::RegisterKernel("CastKernel", Body);
  return true;
}();

}  // namespace

#if !defined(DITSERVE_HAS_NVCC)
cudaError_t CudaCast(const void* source, DType from, const Roundings& through, void* target, DType to, int64_t count,
                     cudaStream_t stream) {
  const auto* const kernel = reinterpret_cast<const void*>(&Body);
  cuda_double::NameKernel(kernel, "CastKernel");
  HostThread::CastLaunch launch = HostThread::LaunchOf(source, from, through, target, to, count);
  void* arguments[] = {&source, &launch.from, &launch.through, &target, &launch.to, &launch.head, &launch.count};
  return cudaLaunchKernel(kernel, launch.blocks, HostThread::kThreads, arguments, 0, stream);
}
#endif

}  // namespace ditserve
