#ifndef DITSERVE_MODELS_KERNELS_TILE_KERNELS_H_
#define DITSERVE_MODELS_KERNELS_TILE_KERNELS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/dtype.h"

namespace ditserve {

// Instruction sets that float32 products are computed with, slowest first.
enum class Isa : uint8_t { kPortable, kAvx2, kAvx512 };

// Those that this processor has. The last is the fastest.
const std::vector<Isa>& Isas();

// A row-major matrix of floats. `stride` is the elements from one row to the next.
struct FloatRows {
  const float* data;
  int64_t stride;
  int64_t rows;
};

// The inner loops of products and of attention for one instruction set and one dtype of weights. Sizes are elements.
struct TileKernels {
  int64_t tile_rows;     // Rows of y that are computed at a time,
  int64_t tile_columns;  // and columns.
  int64_t few_rows;      // With fewer rows than this multiply_few is the faster.

  // Rearranges [columns, depth] of a weight, `stride` elements from row to row and columns <= tile_columns, to one line
  // of tile_columns float32 for each of `depth`. What is in missing columns is undefined. Writes up to kPackSlack
  // floats behind the last line.
  void (*pack_weights)(const std::byte* weight, int64_t stride, int64_t columns, int64_t depth, float* panel);

  // Rearranges [rows, depth] of x, rows <= tile_rows, to one line of tile_rows for each of `depth`. Writes up to
  // kPackSlack floats behind the last line.
  void (*pack_rows)(const float* x, int64_t stride, int64_t rows, int64_t depth, float* packed);

  // The same of x that lies transposed, as [depth, rows].
  void (*pack_columns)(const float* x, int64_t stride, int64_t rows, int64_t depth, float* packed);

  // y = packed rows times a packed panel + start, in [rows, tile_columns] of y; start has one value for each column, or
  // is null and y itself is added to.
  void (*multiply_tile)(const float* packed_rows, const float* panel, int64_t rows, int64_t depth, const float* start,
                        float* y, int64_t y_stride);

  // y[r, c] = x[r] . weight[c] + bias[c], without rearranging anything.
  void (*multiply_few)(const float* x, int64_t x_stride, int64_t rows, const std::byte* weight, const std::byte* bias,
                       int64_t columns, int64_t depth, float* y, int64_t y_stride);

  // Converts `count` elements to float32.
  void (*decode)(const std::byte* source, int64_t count, float* target);

  // One step of a softmax over the lines of scores, shape [lines, tile_columns], each column by itself. `maximum`
  // becomes the largest of it and of scale * scores; scores become 2^(scale * scores - maximum), and are added to
  // `total`. What was added up before, `total` and `sums` of shape [sum_lines, tile_columns], is first multiplied by
  // 2^(old maximum - new). maximum and total: tile_columns values.
  void (*soften)(float* scores, int64_t lines, float scale, float* maximum, float* total, float* sums,
                 int64_t sum_lines);
};

// As many lines of the widest panel as elements in its widest vector.
constexpr int64_t kPackSlack = int64_t{64} * 32;

constexpr int64_t kMaxTileRows = 16;
constexpr int64_t kMaxTileColumns = 32;

// Memory of the calling thread for rearranged operands, aligned to a cache line. It is kept as long as the thread lives
// and belongs to the process, as its code does: no request reserves it.
constexpr int64_t kScratchFloats = 680 << 10;
float* ThreadScratch();

const TileKernels& TileKernelsOf(Isa isa, DType dtype);

// For each instruction set. Used by TileKernelsOf alone.
const TileKernels& PortableTileKernels(DType dtype);
#if defined(__x86_64__)
const TileKernels& Avx2TileKernels(DType dtype);
const TileKernels& Avx512TileKernels(DType dtype);
#endif

}  // namespace ditserve

#endif  // DITSERVE_MODELS_KERNELS_TILE_KERNELS_H_
