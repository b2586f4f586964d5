// The body of the kernel that makes what float8 products take, compiled for the host: the threads of a block one after
// the other. Where nvcc is missing, it launches it too.
#include <algorithm>

#include "core/devices/cuda_float8_operands.h"
#include "core/devices/float8_rows.h"
#include "tests/cuda_double/cuda_double.h"

namespace ditserve {
namespace {

// A block of the kernel.
struct HostBlock {
  dim3 blockIdx;  // NOLINT(readability-identifier-naming): CUDA's name.

  template <typename Act>
  static void ForThreads(Act act) {
    for (int thread = 0; thread < kThreads; ++thread) act(thread);
  }
  template <typename Find>
  static unsigned LargestOfThreads(Find find) {
    unsigned largest = 0;
    for (int thread = 0; thread < kThreads; ++thread) largest = std::max<unsigned>(largest, find(thread));
    return largest;
  }
#include "core/devices/cuda_float8_operands_kernel.inc"
};

cuda_double::KernelWork Body(dim3 grid, dim3, void** arguments) {
  const auto of = *static_cast<const Float8Operands*>(arguments[0]);
  return {{{of.x, ((of.rows - 1) * of.stride + of.elements) * 2, false},
           {of.bias, of.columns, false},
           {of.quantized, of.rows * of.elements, true},
           {of.row_scales, of.rows * 4, true},
           {of.column_scales, of.columns * 4, true},
           {of.wide_bias, of.columns * 2, true}},
          [=](const std::vector<std::byte*>& found) {
            const Float8Operands there = {reinterpret_cast<const uint16_t*>(found[0]),
                                          of.stride,
                                          of.rows,
                                          of.elements,
                                          reinterpret_cast<const uint8_t*>(found[1]),
                                          of.columns,
                                          reinterpret_cast<uint8_t*>(found[2]),
                                          reinterpret_cast<float*>(found[3]),
                                          reinterpret_cast<float*>(found[4]),
                                          reinterpret_cast<uint16_t*>(found[5])};
            HostBlock block = {};
            for (block.blockIdx.x = 0; block.blockIdx.x < grid.x; ++block.blockIdx.x) block.Float8OperandsKernel(there);
          }};
}

[[maybe_unused]] const bool kRegistered = [] {
  cuda_double::RegisterKernel("Float8OperandsKernel", Body);
  return true;
}();

}  // namespace

#if !defined(DITSERVE_HAS_NVCC)
cudaError_t CudaMakeFloat8Operands(const Float8Operands& operands, cudaStream_t stream) {
  const auto* const kernel = reinterpret_cast<const void*>(&Body);
  cuda_double::NameKernel(kernel, "Float8OperandsKernel");
  Float8Operands argument = operands;
  void* arguments[] = {&argument};
  return cudaLaunchKernel(kernel, HostBlock::BlocksOf(operands), HostBlock::kThreads, arguments, 0, stream);
}
#endif

}  // namespace ditserve
