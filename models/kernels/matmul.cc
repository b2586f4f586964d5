#include "models/kernels/matmul.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <type_traits>

namespace ditserve {
namespace {

// The roles of caches are those of BLIS (Van Zee and van de Geijn, 2015): a panel of the weight stays in the
// first-level cache while a block of x's rows passes by, that block in the second-level cache while it meets all
// panels, and the panels of a block of columns in the third-level cache while all rows pass by.
//
// What is where in a thread's scratch, in words.
struct Layout {
  constexpr explicit Layout(const ProductBlocks& blocks)
      : rows(blocks.lines * blocks.columns + kPackSlack),
        start(rows + blocks.lines * blocks.rows + kPackSlack),
        tile(start + blocks.columns),
        sums(tile + kMaxTileRows * kMaxTileColumns),
        end(sums + blocks.sum_rows * blocks.columns) {}

  int64_t weights = 0;  // Panels of [lines, tile_columns].
  int64_t rows;         // Tiles of [lines, tile_rows].
  int64_t start;        // For each column.
  int64_t tile;         // [tile_rows, tile_columns]
  int64_t sums;         // [sum_rows, columns]. In bfloat16 what is added up so far cannot lie in y.
  int64_t end;
};
constexpr bool Fits(const ProductBlocks& blocks) {
  return Layout(blocks).end <= kScratchFloats && blocks.columns % kMaxTileColumns == 0;
}
static_assert(Fits(kProductBlocks) && Fits(kAmxProductBlocks));

// A part of the product: rows [row, row_end) and columns [column, column_end) of y.
struct Part {
  int64_t row, row_end, column, column_end;
};

// Element: float, or uint16_t for bfloat16.
template <typename Element>
class Product {
 public:
  Product(const TileKernels& kernels, const Rows<Element>& x, const LinearParameters& linear, Element* y,
          int64_t y_stride)
      : kernels_(kernels), at_(kernels.blocks), x_(x), linear_(linear), y_(y), y_stride_(y_stride) {}

  void Compute(const Part& part) const {
    if constexpr (kSumsInY) {
      if (x_.rows < kernels_.few_rows) return ComputeFew(part);
    }
    float* const scratch = ThreadScratch();
    const ProductBlocks& blocks = kernels_.blocks;
    const int64_t most_depth = blocks.lines * kInWord;
    for (int64_t column = part.column; column < part.column_end; column += blocks.columns) {
      const int64_t columns = std::min(blocks.columns, part.column_end - column);
      Start(column, columns, scratch);
      for (int64_t k = 0; k < linear_.in; k += most_depth) {
        const int64_t depth = std::min(most_depth, linear_.in - k), lines = kernels_.Lines(depth, kInWord);
        for (int64_t row = part.row; row < part.row_end; row += blocks.rows) {
          const int64_t rows = std::min(blocks.rows, part.row_end - row);
          PackRows(row, rows, k, depth, scratch);
          const Sums sums = SumsOf(row, row - part.row, column, scratch);
          for (int64_t c = 0; c < columns; c += kernels_.tile_columns) {
            const int64_t present = std::min(kernels_.tile_columns, columns - c);
            float* const panel = scratch + at_.weights + c * lines;
            // Just before it is used for the first time.
            if (row == part.row) {
              kernels_.pack_weights(WeightAt(column + c, k), linear_.in, present, depth, panel);
            }
            MultiplyPanel(panel, lines, k == 0 ? scratch + at_.start + c : nullptr, rows, {sums.data + c, sums.stride},
                          present, scratch);
          }
          if constexpr (!kSumsInY) {
            if (k + depth == linear_.in) Round(sums, row, rows, column, columns);
          }
        }
      }
    }
  }

 private:
  static constexpr bool kSumsInY = std::is_same_v<Element, float>;
  static constexpr int64_t kInWord = sizeof(float) / sizeof(Element);

  // Where the sums of some rows and columns are, until they are y.
  struct Sums {
    float* data;
    int64_t stride;
  };

  Sums SumsOf(int64_t row, int64_t row_of_part, int64_t column, float* scratch) const {
    if constexpr (kSumsInY) return {y_ + row * y_stride_ + column, y_stride_};
    return {scratch + at_.sums + row_of_part * kernels_.blocks.columns, kernels_.blocks.columns};
  }

  const std::byte* WeightAt(int64_t column, int64_t k) const {
    return linear_.weight + (column * linear_.in + k) * SizeOf(linear_.dtype);
  }
  const std::byte* BiasAt(int64_t column) const {
    return linear_.bias != nullptr ? linear_.bias + column * SizeOf(linear_.dtype) : nullptr;
  }

  // What the sums of these columns begin with.
  void Start(int64_t column, int64_t columns, float* scratch) const {
    std::fill_n(scratch + at_.start, columns, 0.0f);
    if (linear_.bias != nullptr) kernels_.decode(BiasAt(column), columns, scratch + at_.start);
  }

  void PackRows(int64_t row, int64_t rows, int64_t k, int64_t depth, float* scratch) const {
    const int64_t lines = kernels_.Lines(depth, kInWord);
    for (int64_t r = 0; r < rows; r += kernels_.tile_rows) {
      kernels_.pack_rows(reinterpret_cast<const std::byte*>(x_.data + (row + r) * x_.stride + k), x_.stride,
                         std::min(kernels_.tile_rows, rows - r), depth, scratch + at_.rows + r * lines);
    }
  }

  // Adds the packed rows' products with a panel of `present` columns to their sums.
  void MultiplyPanel(const float* panel, int64_t lines, const float* start, int64_t rows, const Sums& sums,
                     int64_t present, float* scratch) const {
    const int64_t width = kernels_.tile_columns;
    for (int64_t r = 0; r < rows; r += kernels_.tile_rows) {
      const float* const packed = scratch + at_.rows + r * lines;
      const int64_t tile_rows = std::min(kernels_.tile_rows, rows - r);
      float* const to = sums.data + r * sums.stride;
      if (present == width || !kSumsInY) {
        kernels_.multiply_tile(packed, panel, tile_rows, lines, start, to, sums.stride);
        continue;
      }
      // The last columns do not fill a tile: they are computed beside y.
      float* const tile = scratch + at_.tile;
      for (int64_t i = 0; i < tile_rows && start == nullptr; ++i) {
        std::copy_n(to + i * sums.stride, present, tile + i * width);
      }
      kernels_.multiply_tile(packed, panel, tile_rows, lines, start, tile, width);
      for (int64_t i = 0; i < tile_rows; ++i) std::copy_n(tile + i * width, present, to + i * sums.stride);
    }
  }

  void Round(const Sums& sums, int64_t row, int64_t rows, int64_t column, int64_t columns) const {
    for (int64_t r = 0; r < rows; ++r) {
      kernels_.round(sums.data + r * sums.stride, columns, y_ + (row + r) * y_stride_ + column);
    }
  }

  void ComputeFew(const Part& part) const {
    kernels_.multiply_few(x_.data + part.row * x_.stride, x_.stride, part.row_end - part.row, WeightAt(part.column, 0),
                          BiasAt(part.column), part.column_end - part.column, linear_.in,
                          y_ + part.row * y_stride_ + part.column, y_stride_);
  }

  const TileKernels& kernels_;
  const Layout at_;
  const Rows<Element> x_;
  const LinearParameters linear_;
  Element* const y_;
  const int64_t y_stride_;
};

// How many parts the rows and the columns are cut into, so that every thread has one. Columns first: a thread then
// rearranges only its own weights. But not into so few that rearranging x weighs in.
struct Grid {
  int64_t rows, columns;
};

Grid GridFor(int64_t threads, int64_t rows, int64_t panels) {
  constexpr int64_t kFewPanels = 12;
  constexpr int64_t kManyRows = 128;
  Grid grid = {1, threads};
  while (grid.columns % 2 == 0 && panels / grid.columns < kFewPanels && rows / (2 * grid.rows) >= kManyRows) {
    grid.columns /= 2;
    grid.rows *= 2;
  }
  return grid;
}

template <typename Element>
void Multiply(const TileKernels& kernels, const Rows<Element>& x, const LinearParameters& linear, Element* y,
              int64_t y_stride) {
  const Product<Element> product(kernels, x, linear, y, y_stride);
  const int64_t panels = (linear.out + kernels.tile_columns - 1) / kernels.tile_columns;
  const int64_t tiles = (x.rows + kernels.tile_rows - 1) / kernels.tile_rows;
  const int64_t threads = at::get_num_threads();
  Grid grid = GridFor(threads, x.rows, panels);
  // More parts than threads, taken one by one: whoever is interrupted, by a transfer say, holds up nobody.
  grid.columns = std::max(grid.columns, panels * kernels.tile_columns / kernels.blocks.columns);
  const int64_t sum_tiles = kernels.blocks.sum_rows / kernels.tile_rows;
  if (!std::is_same_v<Element, float>) grid.rows = std::max(grid.rows, (tiles + sum_tiles - 1) / sum_tiles);
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const TileScope scope(kernels);
    for (int64_t i = 0; (i = next++) < grid.rows * grid.columns;) {
      const int64_t r = i / grid.columns, c = i % grid.columns;
      Part part;
      part.row = tiles * r / grid.rows * kernels.tile_rows;
      part.row_end = std::min(x.rows, tiles * (r + 1) / grid.rows * kernels.tile_rows);
      part.column = panels * c / grid.columns * kernels.tile_columns;
      part.column_end = std::min(linear.out, panels * (c + 1) / grid.columns * kernels.tile_columns);
      product.Compute(part);
    }
  });
}

}  // namespace

int64_t MatmulFewRows(Isa isa) { return TileKernelsOf(isa, DType::kFloat32, DType::kFloat32).few_rows; }

void MultiplyFloat32(const FloatRows& x, const LinearParameters& linear, float* y, int64_t y_stride, Isa isa) {
  Multiply(TileKernelsOf(isa, DType::kFloat32, linear.dtype), x, linear, y, y_stride);
}

void MultiplyBFloat16(const BFloat16Rows& x, const LinearParameters& linear, uint16_t* y, int64_t y_stride, Isa isa) {
  Multiply(TileKernelsOf(isa, DType::kBFloat16, linear.dtype), x, linear, y, y_stride);
}

}  // namespace ditserve
