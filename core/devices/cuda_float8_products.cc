// The CUDA half of LibTorch's operation ditserve::float8_operands, which models/float8_product.cc defines and calls.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "core/devices/cuda_float8_operands.h"

namespace ditserve {
namespace {

template <typename Element>
Element* DataOf(const at::Tensor& tensor) {
  return static_cast<Element*>(const_cast<void*>(tensor.const_data_ptr()));
}

void MakeFloat8Operands(const at::Tensor& x, const at::Tensor& bias, at::Tensor& quantized, at::Tensor& row_scales,
                        at::Tensor& column_scales, at::Tensor& wide_bias) {
  constexpr int64_t kGroup = 16;  // Elements and bytes.
  TORCH_CHECK(x.scalar_type() == at::kBFloat16 && x.stride(1) == 1 && x.size(1) % kGroup == 0 &&
                  x.stride(0) % kGroup == 0 && reinterpret_cast<uintptr_t>(x.const_data_ptr()) % kGroup == 0,
              "float8_operands: rows of bfloat16 in groups of 16 elements are expected");
  const Float8Operands operands = {DataOf<const uint16_t>(x),
                                   x.stride(0),
                                   x.size(0),
                                   x.size(1),
                                   DataOf<const uint8_t>(bias),
                                   bias.size(0),
                                   DataOf<uint8_t>(quantized),
                                   DataOf<float>(row_scales),
                                   DataOf<float>(column_scales),
                                   DataOf<uint16_t>(wide_bias)};
  const c10::cuda::CUDAGuard guard(x.device());
  C10_CUDA_CHECK(CudaMakeFloat8Operands(operands, c10::cuda::getCurrentCUDAStream(x.device().index())));
}

}  // namespace

TORCH_LIBRARY_IMPL(ditserve, CUDA, library) { library.impl("float8_operands", MakeFloat8Operands); }

}  // namespace ditserve
