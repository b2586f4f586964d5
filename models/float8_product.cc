#include "models/float8_product.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_scaled_mm.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>

#include "core/devices/cast.h"
#include "core/devices/float8_rows.h"
#include "models/kernels/matmul.h"
#include "models/meta_run.h"

namespace ditserve {
namespace {

// A GPU's device module computes it (core/devices/cuda_float8_products.cc): the last four are made of the first two, in
// one kernel.
TORCH_LIBRARY(ditserve, library) {
  library.def(
      "float8_operands(Tensor x, Tensor bias, Tensor(a!) rows, Tensor(b!) row_scales, Tensor(c!) column_scales, "
      "Tensor(d!) wide_bias) -> ()");
}

void MakeOperands(const at::Tensor& x, const at::Tensor& bias, at::Tensor& rows, at::Tensor& row_scales,
                  at::Tensor& column_scales, at::Tensor& wide_bias) {
  using Operands = void(const at::Tensor&, const at::Tensor&, at::Tensor&, at::Tensor&, at::Tensor&, at::Tensor&);
  static const auto operation =
      c10::Dispatcher::singleton().findSchemaOrThrow("ditserve::float8_operands", "").typed<Operands>();
  operation.call(x, bias, rows, row_scales, column_scales, wide_bias);
}

// What LibTorch's kernel for a product takes inside on GPUs of compute capability 8.9: as much for each multiprocessor
// (tests/cuda_audit). Those that serve have up to 192.
constexpr int64_t kGpuWorkspaceBytes = int64_t{192} * (128 << 10);

// On the CPU.
void QuantizeRows(const at::Tensor& x, at::Tensor& rows, at::Tensor& scales) {
  const auto* const from = static_cast<const uint16_t*>(x.const_data_ptr());
  auto* const to = static_cast<uint8_t*>(rows.data_ptr());
  auto* const scale = scales.data_ptr<float>();
  at::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      scale[i] = QuantizeRow(from + i * x.stride(0), x.size(1), to + i * x.size(1));
    }
  });
}

// LibTorch's own conversion is not vectorized.
void Widen(const at::Tensor& rows, const at::Tensor& wide) {
  const auto* const from = static_cast<const std::byte*>(rows.const_data_ptr());
  auto* const to = wide.data_ptr<float>();
  at::parallel_for(0, rows.size(0), 1, [&](int64_t begin, int64_t end) {
    const int64_t at = begin * rows.size(1), count = (end - begin) * rows.size(1);
    Cast(from + at, DType::kFloat8E4M3, {}, to + at, DType::kFloat32, count);
  });
}

}  // namespace

void MultiplyFloat8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, at::Tensor& target) {
  const auto floats = x.options().dtype(at::kFloat);
  at::Tensor rows = at::empty(x.sizes(), x.options().dtype(at::kFloat8_e4m3fn));
  at::Tensor row_scales = at::empty({x.size(0), 1}, floats);
  if (DeviceTypeOf(x) != at::kCUDA) {
    if (!x.is_meta()) QuantizeRows(x, rows, row_scales);
    return MultiplyScaledRows(rows, row_scales, weight, bias.to(at::kFloat), target);
  }
  at::Tensor column_scales = at::empty({1, weight.size(0)}, floats),
             wide_bias = at::empty({weight.size(0)}, x.options());
  if (x.is_meta()) {
    at::empty({kGpuWorkspaceBytes}, x.options().dtype(at::kByte));
    return;
  }
  MakeOperands(x, bias, rows, row_scales, column_scales, wide_bias);
  at::_scaled_mm_out(target, rows, weight.t(), row_scales, column_scales, wide_bias, /*scale_result=*/std::nullopt,
                     target.scalar_type());
}

void MultiplyScaledRows(const at::Tensor& rows, const at::Tensor& scales, const at::Tensor& weight,
                        const at::Tensor& bias, const at::Tensor& target) {
  constexpr int64_t kRowsAtATime = 512;  // The weight is rearranged for each, which is little work then.
  for (int64_t begin = 0; begin < rows.size(0); begin += kRowsAtATime) {
    const int64_t count = std::min(kRowsAtATime, rows.size(0) - begin);
    const at::Tensor wide = at::empty({count, rows.size(1)}, scales.options());
    const at::Tensor product = at::empty({count, weight.size(0)}, scales.options());
    if (rows.is_meta()) continue;
    Widen(rows.narrow(0, begin, count), wide);
    const LinearParameters linear = {static_cast<const std::byte*>(weight.const_data_ptr()), /*bias=*/nullptr,
                                     DType::kFloat8E4M3, weight.size(0), weight.size(1)};
    MultiplyFloat32({{{wide.data_ptr<float>(), wide.stride(0), count}, product.data_ptr<float>(), product.stride(0)}},
                    linear);
    target.narrow(0, begin, count).copy_(product.mul_(scales.narrow(0, begin, count)).add_(bias));
  }
}

}  // namespace ditserve
