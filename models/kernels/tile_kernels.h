#ifndef DITSERVE_MODELS_KERNELS_TILE_KERNELS_H_
#define DITSERVE_MODELS_KERNELS_TILE_KERNELS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/dtype.h"

namespace ditserve {

// Instruction sets that products are computed with, slowest first. The last two differ in bfloat16 arithmetic alone.
enum class Isa : uint8_t { kPortable, kAvx2, kAvx512, kAvx512BFloat16, kAmxBFloat16 };

// Those that this processor has and the system lets this process use. The last is the fastest.
const std::vector<Isa>& Isas();

// A row-major matrix of float, or of uint16_t, the bits of bfloat16. `stride` is the elements from one row to the next.
template <typename Element>
struct Rows {
  const Element* data;
  int64_t stride;
  int64_t rows;
};
using FloatRows = Rows<float>;
using BFloat16Rows = Rows<uint16_t>;

// How a product is cut up, by what fits which cache: a panel of the weight, of so many lines, the first-level one; a
// block of x's rows, or what is added up so far, the second-level one. `sum_rows` rows and `columns` columns of sums
// lie beside y where they cannot lie in it; of several factors so many rows are multiplied together.
struct ProductBlocks {
  int64_t lines, columns, rows, sum_rows;
};
constexpr ProductBlocks kProductBlocks = {/*lines=*/384, /*columns=*/768, /*rows=*/144, /*sum_rows=*/1032};
constexpr ProductBlocks kAmxProductBlocks = {/*lines=*/192, /*columns=*/512, /*rows=*/128, /*sum_rows=*/2048};

// The inner loops of products and of attention for one instruction set, one arithmetic and one dtype of weights. Sizes
// are elements. Operands are rearranged to lines of words, which hold a float32 or, in bfloat16 arithmetic, two
// neighbours along `depth`, the first in the lower half; where the second is missing, a zero. So there are half as many
// lines then, and zeros for those that are missing of a multiple of line_multiple. Sums are float32.
struct TileKernels {
  int64_t tile_rows;      // Rows of y that are computed at a time,
  int64_t tile_columns;   // and columns.
  int64_t line_multiple;  // Operands have a multiple of so many lines.
  int64_t few_rows;       // With fewer rows than this multiply_few is the faster.
  ProductBlocks blocks;

  // The lines of an operand of `depth` elements, of which a word holds so many.
  int64_t Lines(int64_t depth, int64_t in_word) const {
    return (depth + in_word * line_multiple - 1) / (in_word * line_multiple) * line_multiple;
  }

  // What a thread does before and after it calls multiply_tile. Null where that is nothing.
  void (*begin)();
  void (*end)();

  // Rearranges [columns, depth] of a weight, `stride` elements from row to row and columns <= tile_columns, to lines of
  // tile_columns words. What is in missing columns is undefined. Writes up to kPackSlack words behind the last line.
  void (*pack_weights)(const std::byte* weight, int64_t stride, int64_t columns, int64_t depth, float* panel);

  // Rearranges [rows, depth] of x, rows <= tile_rows, to lines of tile_rows words, in the order that multiply_tile
  // takes them in. Writes up to kPackSlack words behind the last line.
  void (*pack_rows)(const std::byte* x, int64_t stride, int64_t rows, int64_t depth, float* packed);

  // The same of x that lies transposed, as [depth, rows].
  void (*pack_columns)(const std::byte* x, int64_t stride, int64_t rows, int64_t depth, float* packed);

  // y = packed rows times a packed panel, both of `lines`, + start, in [rows, tile_columns] of y; start has one value
  // for each column, or is null and y itself is added to.
  void (*multiply_tile)(const float* packed_rows, const float* panel, int64_t rows, int64_t lines, const float* start,
                        float* y, int64_t y_stride);

  // y[r, c] = x[r] . weight[c] + bias[c], without rearranging anything. Null in bfloat16 arithmetic.
  void (*multiply_few)(const float* x, int64_t x_stride, int64_t rows, const std::byte* weight, const std::byte* bias,
                       int64_t columns, int64_t depth, float* y, int64_t y_stride);

  // Converts `count` elements to float32.
  void (*decode)(const std::byte* source, int64_t count, float* target);

  // One step of a softmax over the lines of scores, shape [lines, tile_columns], each column by itself. `maximum`
  // becomes the largest of it and of scale * scores; scores become 2^(scale * scores - maximum), as lines of words, and
  // are added to `total`. What was added up before, `total` and `sums` of shape [sum_lines, tile_columns], is first
  // multiplied by 2^(old maximum - new). maximum and total: tile_columns values.
  void (*soften)(float* scores, int64_t lines, float scale, float* maximum, float* total, float* sums,
                 int64_t sum_lines);

  // Rounds `count` sums to bfloat16. Null in float32 arithmetic.
  void (*round)(const float* source, int64_t count, uint16_t* target);
};

// A thread's readiness to call multiply_tile.
class TileScope {
 public:
  explicit TileScope(const TileKernels& kernels) : end_(kernels.end) {
    if (kernels.begin != nullptr) kernels.begin();
  }
  ~TileScope() {
    if (end_ != nullptr) end_();
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  void (*const end_)();
};

// As many lines of the widest panel as elements in its widest vector.
constexpr int64_t kPackSlack = int64_t{64} * 32;

constexpr int64_t kMaxTileRows = 32;
constexpr int64_t kMaxTileColumns = 32;

// Memory of the calling thread for rearranged operands, aligned to a cache line. It is kept as long as the thread lives
// and belongs to the process, as its code does: no request reserves it.
constexpr int64_t kScratchFloats = 1160 << 10;
float* ThreadScratch();

// arithmetic: float32 or bfloat16, for which weights are bfloat16.
const TileKernels& TileKernelsOf(Isa isa, DType arithmetic, DType weights);

// For each instruction set. Used by TileKernelsOf alone.
const TileKernels& PortableTileKernels(DType arithmetic, DType weights);
#if defined(__x86_64__)
const TileKernels& Avx2TileKernels(DType arithmetic, DType weights);
const TileKernels& Avx512TileKernels(DType arithmetic, DType weights);
const TileKernels& Avx512BFloat16TileKernels();
const TileKernels& AmxBFloat16TileKernels();
#endif

}  // namespace ditserve

#endif  // DITSERVE_MODELS_KERNELS_TILE_KERNELS_H_
