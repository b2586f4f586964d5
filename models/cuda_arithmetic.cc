#include "models/cuda_arithmetic.h"

#include <ATen/Context.h>

namespace ditserve {

// LibTorch's setDeterministicAlgorithms is not what is wanted: it fills each new tensor first.
void FixCudaArithmetic() {
  at::Context& context = at::globalContext();
  // Sums of products are in float32 and of one piece: into how many pieces they were split would depend on how much of
  // the card is taken for them.
  context.setAllowBF16ReductionCuBLAS(/*allow_reduced_precision=*/false, /*allow_splitk=*/false);
  context.setAllowFP16ReductionCuBLAS(/*allow_reduced_precision=*/false, /*allow_splitk=*/false);
  context.setAllowFP16AccumulationCuBLAS(false);
  context.setFloat32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL, at::Float32Precision::IEEE);
  // One kernel for attention on each card: flash attention, of float32 the memory-efficient one. cuDNN would go before
  // them on some, and where neither can be had the third takes memory for all pairs of tokens, which nobody reserves.
  context.setSDPUseCuDNN(false);
  context.setSDPUseMath(false);
}

}  // namespace ditserve
