#ifndef DITSERVE_MODELS_FLOAT8_PRODUCT_H_
#define DITSERVE_MODELS_FLOAT8_PRODUCT_H_

#include <ATen/core/Tensor.h>

namespace ditserve {

// x W^T + b as DiffSynth-Studio 2.1.12 computes it in float8_e4m3fn (core/vram/layers.py, fp8_linear): each row of x is
// divided by a scale and rounded to float8 (core/devices/float8_rows.h); products are summed up in float32, multiplied
// with the scale, and b is added.
//
// x: bfloat16, shape [rows, in]. weight and bias: float8, shapes [out, in], contiguous, and [out]. target: bfloat16,
// shape [rows, out], written. in and out: multiples of 16. A row of the target depends on its row of x and on how many
// rows there are.
void MultiplyFloat8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, at::Tensor& target);

// The product itself, on the CPU: what LibTorch's _scaled_mm computes, which makes a float32 copy of the whole weight
// there each time. rows: float8, shape [rows, in]. scales: float32, shape [rows, 1]. bias: float32, shape [out].
void MultiplyScaledRows(const at::Tensor& rows, const at::Tensor& scales, const at::Tensor& weight,
                        const at::Tensor& bias, const at::Tensor& target);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_FLOAT8_PRODUCT_H_
