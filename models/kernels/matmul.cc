#include "models/kernels/matmul.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <type_traits>
#include <vector>

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

// A part of the product: tiles of rows, which are counted on from factor to factor, and columns of each y.
struct Part {
  int64_t tile, tile_end, column, column_end;
};

// Element: float, or uint16_t for bfloat16.
template <typename Element>
class Product {
 public:
  using Factors = absl::Span<const Factor<Element>>;
  static constexpr bool kSumsInY = std::is_same_v<Element, float>;
  static constexpr int64_t kInWord = kSumsInY ? 1 : 2;

  Product(const TileKernels& kernels, Factors factors, const LinearParameters& linear)
      : kernels_(kernels), at_(kernels.blocks), factors_(factors), linear_(linear) {}

  int64_t tiles() const {
    int64_t tiles = 0;
    for (const Factor<Element>& factor : factors_) tiles += TilesOf(factor);
    return tiles;
  }

  void Compute(const Part& part) const {
    float* const scratch = ThreadScratch();
    const ProductBlocks& blocks = kernels_.blocks;
    const int64_t most_depth = blocks.lines * kInWord;
    for (int64_t column = part.column; column < part.column_end; column += blocks.columns) {
      const int64_t columns = std::min(blocks.columns, part.column_end - column);
      Start(column, columns, scratch);
      for (int64_t k = 0; k < linear_.in; k += most_depth) {
        const int64_t depth = std::min(most_depth, linear_.in - k), lines = kernels_.Lines(depth, kInWord);
        ForBlocks(part, [&](const Factor<Element>& factor, int64_t row, int64_t rows, int64_t row_of_part) {
          PackRows(factor.x, row, rows, k, depth, scratch);
          const Sums sums = SumsOf(factor, row, row_of_part, column, scratch);
          for (int64_t c = 0; c < columns; c += kernels_.tile_columns) {
            const int64_t present = std::min(kernels_.tile_columns, columns - c);
            float* const panel = scratch + at_.weights + c * lines;
            // Just before it is used for the first time.
            if (row_of_part == 0) {
              kernels_.pack_weights(WeightAt(column + c, k), linear_.in, present, depth, panel);
            }
            MultiplyPanel(panel, lines, k == 0 ? scratch + at_.start + c : nullptr, rows, {sums.data + c, sums.stride},
                          present, scratch);
          }
          if constexpr (!kSumsInY) {
            if (k + depth == linear_.in) Round(sums, factor, row, rows, column, columns);
          }
        });
      }
    }
  }

  // The same of all rows, of which every factor has few. Where x is small, columns are taken as many at a time as stay
  // in a cache until the last factor has met them.
  void ComputeFew(int64_t column, int64_t column_end) const requires(kSumsInY) {
    constexpr int64_t kBytes = 512 << 10;
    int64_t x_bytes = 0;
    for (const Factor<Element>& factor : factors_) x_bytes += factor.x.rows * linear_.in * int64_t{sizeof(Element)};
    int64_t columns = column_end - column;
    if (factors_.size() > 1 && x_bytes <= kBytes) {
      const int64_t panel_bytes = kernels_.tile_columns * RowBytes();
      columns = kernels_.tile_columns * std::max<int64_t>(1, kBytes / 2 / panel_bytes);
    }
    for (; column < column_end; column += columns) {
      for (const Factor<Element>& factor : factors_) {
        kernels_.multiply_few(factor.x.data, factor.x.stride, factor.x.rows, WeightAt(column, 0), BiasAt(column),
                              std::min(columns, column_end - column), linear_.in, factor.y + column, factor.y_stride);
      }
    }
  }

 private:
  // Where the sums of some rows and columns are, until they are y.
  struct Sums {
    float* data;
    int64_t stride;
  };

  Sums SumsOf(const Factor<Element>& factor, int64_t row, int64_t row_of_part, int64_t column, float* scratch) const {
    if constexpr (kSumsInY) return {factor.y + row * factor.y_stride + column, factor.y_stride};
    return {scratch + at_.sums + row_of_part * kernels_.blocks.columns, kernels_.blocks.columns};
  }

  int64_t TilesOf(const Factor<Element>& factor) const {
    return (factor.x.rows + kernels_.tile_rows - 1) / kernels_.tile_rows;
  }

  // Calls `step(factor, row, rows, row_of_part)` for the part's rows, as many at a time as a block has.
  template <typename Step>
  void ForBlocks(const Part& part, Step step) const {
    int64_t first = 0;  // Of the factor's tiles.
    for (const Factor<Element>& factor : factors_) {
      const int64_t end = first + TilesOf(factor);
      const int64_t row_end = std::min(factor.x.rows, (std::min(part.tile_end, end) - first) * kernels_.tile_rows);
      for (int64_t row = (std::max(part.tile, first) - first) * kernels_.tile_rows; row < row_end;
           row += kernels_.blocks.rows) {
        const int64_t row_of_part = (first - part.tile) * kernels_.tile_rows + row;
        step(factor, row, std::min(kernels_.blocks.rows, row_end - row), row_of_part);
      }
      first = end;
    }
  }

  int64_t RowBytes() const { return linear_.in * SizeOf(linear_.dtype); }
  const std::byte* WeightAt(int64_t column, int64_t k) const {
    return linear_.weight + column * RowBytes() + k * SizeOf(linear_.dtype);
  }
  const std::byte* BiasAt(int64_t column) const {
    return linear_.bias != nullptr ? linear_.bias + column * SizeOf(linear_.dtype) : nullptr;
  }

  // What the sums of these columns begin with.
  void Start(int64_t column, int64_t columns, float* scratch) const {
    std::fill_n(scratch + at_.start, columns, 0.0f);
    if (linear_.bias != nullptr) kernels_.decode(BiasAt(column), columns, scratch + at_.start);
  }

  void PackRows(const Rows<Element>& x, int64_t row, int64_t rows, int64_t k, int64_t depth, float* scratch) const {
    const int64_t lines = kernels_.Lines(depth, kInWord);
    for (int64_t r = 0; r < rows; r += kernels_.tile_rows) {
      kernels_.pack_rows(reinterpret_cast<const std::byte*>(x.data + (row + r) * x.stride + k), x.stride,
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

  void Round(const Sums& sums, const Factor<Element>& factor, int64_t row, int64_t rows, int64_t column,
             int64_t columns) const {
    for (int64_t r = 0; r < rows; ++r) {
      kernels_.round(sums.data + r * sums.stride, columns, factor.y + (row + r) * factor.y_stride + column);
    }
  }

  const TileKernels& kernels_;
  const Layout at_;
  const Factors factors_;
  const LinearParameters linear_;
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

// Calls `compute` for each of `parts`, on all threads. Best there are more parts than threads: they are taken one by
// one, so that whoever is interrupted, by a transfer say, holds up nobody.
template <typename Compute>
void ForParts(const TileKernels& kernels, int64_t parts, Compute compute) {
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    const TileScope scope(kernels);
    for (int64_t i = 0; (i = next++) < parts;) compute(i);
  });
}

// Cuts a product into what is multiplied together, and that into parts.
template <typename Element>
class Multiplier {
 public:
  using Factors = typename Product<Element>::Factors;

  Multiplier(const TileKernels& kernels, const LinearParameters& linear)
      : kernels_(kernels),
        linear_(linear),
        panels_((linear.out + kernels.tile_columns - 1) / kernels.tile_columns),
        blocks_(panels_ * kernels.tile_columns / kernels.blocks.columns) {}

  void Multiply(Factors factors) const {
    std::vector<Factor<Element>> few, many;
    int64_t rows = 0;  // Of `many`.
    for (const Factor<Element>& factor : factors) {
      if (factor.x.rows < kernels_.few_rows) {
        few.push_back(factor);
        continue;
      }
      if (rows + factor.x.rows > kernels_.blocks.sum_rows) {
        MultiplyMany(many, rows);
        many.clear();
        rows = 0;
      }
      many.push_back(factor);
      rows += factor.x.rows;
    }
    MultiplyMany(many, rows);
    if constexpr (Product<Element>::kSumsInY) MultiplyFew(few);
  }

 private:
  // Where part i of `parts` of the columns begins.
  int64_t Column(int64_t i, int64_t parts) const {
    return std::min(linear_.out, panels_ * i / parts * kernels_.tile_columns);
  }

  void MultiplyFew(Factors factors) const {
    if (factors.empty()) return;
    const Product<Element> product(kernels_, factors, linear_);
    const int64_t parts = std::max<int64_t>(at::get_num_threads(), blocks_);
    ForParts(kernels_, parts, [&](int64_t i) { product.ComputeFew(Column(i, parts), Column(i + 1, parts)); });
  }

  void MultiplyMany(Factors factors, int64_t rows) const {
    if (factors.empty()) return;
    const Product<Element> product(kernels_, factors, linear_);
    const int64_t tiles = product.tiles(), sum_tiles = kernels_.blocks.sum_rows / kernels_.tile_rows;
    Grid grid = GridFor(at::get_num_threads(), rows, panels_);
    grid.columns = std::max(grid.columns, blocks_);
    if (!Product<Element>::kSumsInY) grid.rows = std::max(grid.rows, (tiles + sum_tiles - 1) / sum_tiles);
    ForParts(kernels_, grid.rows * grid.columns, [&](int64_t i) {
      const int64_t r = i / grid.columns, c = i % grid.columns;
      product.Compute(
          {tiles * r / grid.rows, tiles * (r + 1) / grid.rows, Column(c, grid.columns), Column(c + 1, grid.columns)});
    });
  }

  const TileKernels& kernels_;
  const LinearParameters linear_;
  const int64_t panels_;
  const int64_t blocks_;  // Of columns.
};

}  // namespace

int64_t MatmulFewRows(Isa isa) { return TileKernelsOf(isa, DType::kFloat32, DType::kFloat32).few_rows; }

void MultiplyFloat32(absl::Span<const FloatFactor> factors, const LinearParameters& linear, Isa isa) {
  Multiplier<float>(TileKernelsOf(isa, DType::kFloat32, linear.dtype), linear).Multiply(factors);
}

void MultiplyBFloat16(absl::Span<const BFloat16Factor> factors, const LinearParameters& linear, Isa isa) {
  Multiplier<uint16_t>(TileKernelsOf(isa, DType::kBFloat16, linear.dtype), linear).Multiply(factors);
}

}  // namespace ditserve
