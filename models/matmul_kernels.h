#ifndef DITSERVE_MODELS_MATMUL_KERNELS_H_
#define DITSERVE_MODELS_MATMUL_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace ditserve {

// The inner loops of MultiplyFloat32 for one instruction set and one dtype of weights. Sizes are elements.
struct MatmulKernels {
  int tile_rows;     // Rows of y that are computed at a time,
  int tile_columns;  // and columns.
  int few_rows;      // With fewer rows than this multiply_few is the faster.

  // Rearranges [columns, depth] of a weight, `stride` elements from row to row and columns <= tile_columns, to one line
  // of tile_columns float32 for each of `depth`. What is in missing columns is undefined. Writes up to kPackSlack
  // floats behind the last line.
  void (*pack_weights)(const std::byte* weight, int64_t stride, int64_t columns, int64_t depth, float* panel);

  // Rearranges [rows, depth] of x, rows <= tile_rows, to one line of tile_rows for each of `depth`. Writes up to
  // kPackSlack floats behind the last line.
  void (*pack_rows)(const float* x, int64_t stride, int64_t rows, int64_t depth, float* packed);

  // y = packed rows times a packed panel + start, in [rows, tile_columns] of y; start has one value for each column, or
  // is null and y itself is added to.
  void (*multiply_tile)(const float* packed_rows, const float* panel, int64_t rows, int64_t depth, const float* start,
                        float* y, int64_t y_stride);

  // y[r, c] = x[r] . weight[c] + bias[c], without rearranging anything.
  void (*multiply_few)(const float* x, int64_t x_stride, int64_t rows, const std::byte* weight, const std::byte* bias,
                       int64_t columns, int64_t depth, float* y, int64_t y_stride);

  // Converts `count` elements to float32.
  void (*decode)(const std::byte* source, int64_t count, float* target);
};

// As many lines of the widest panel as elements in its widest vector.
constexpr int64_t kPackSlack = 64 * 32;

const MatmulKernels& PortableMatmulKernels(DType dtype);
#if defined(__x86_64__)
const MatmulKernels& Avx2MatmulKernels(DType dtype);
const MatmulKernels& Avx512MatmulKernels(DType dtype);
#endif

}  // namespace ditserve

#endif  // DITSERVE_MODELS_MATMUL_KERNELS_H_
