#include "models/matmul.h"

#include <ATen/Parallel.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>

#include "models/matmul_kernels.h"

namespace ditserve {
namespace {

// A block of the weight, rearranged, stays in the second-level cache while all rows of x pass by; the rows of a tile
// stay in the first-level cache while they meet all its columns.
constexpr int64_t kDepth = 384;
constexpr int64_t kColumns = 384;
constexpr int64_t kMaxTileRows = 16;
constexpr int64_t kMaxTileColumns = 32;

struct Scratch {
  alignas(64) std::array<float, kDepth * kColumns + kPackSlack> weights;
  alignas(64) std::array<float, kDepth * kMaxTileRows + kPackSlack> rows;
  alignas(64) std::array<float, kColumns> start;
  alignas(64) std::array<float, kMaxTileRows * kMaxTileColumns> tile;
};
static_assert(sizeof(Scratch) <= kMatmulScratchBytes);

Scratch& ThreadScratch() {
  thread_local const std::unique_ptr<Scratch> scratch(new Scratch);  // Uninitialized: pages count when they are used.
  return *scratch;
}

const MatmulKernels& KernelsOf(MatmulIsa isa, DType dtype) {
#if defined(__x86_64__)
  if (isa == MatmulIsa::kAvx512) return Avx512MatmulKernels(dtype);
  if (isa == MatmulIsa::kAvx2) return Avx2MatmulKernels(dtype);
#endif
  static_cast<void>(isa);
  return PortableMatmulKernels(dtype);
}

// A part of the product: rows [row, row_end) and columns [column, column_end) of y.
struct Part {
  int64_t row, row_end, column, column_end;
};

class Product {
 public:
  Product(const MatmulKernels& kernels, const FloatRows& x, const LinearParameters& linear, float* y, int64_t y_stride)
      : kernels_(kernels), x_(x), linear_(linear), y_(y), y_stride_(y_stride) {}

  void Compute(const Part& part) const {
    if (x_.rows < kernels_.few_rows) return ComputeFew(part);
    Scratch& scratch = ThreadScratch();
    for (int64_t column = part.column; column < part.column_end; column += kColumns) {
      const int64_t columns = std::min(kColumns, part.column_end - column);
      for (int64_t k = 0; k < linear_.in; k += kDepth) {
        const int64_t depth = std::min(kDepth, linear_.in - k);
        PackWeights(column, columns, k, depth, scratch);
        if (k == 0) Start(column, columns, scratch);
        for (int64_t row = part.row; row < part.row_end; row += kernels_.tile_rows) {
          const int64_t rows = std::min<int64_t>(kernels_.tile_rows, part.row_end - row);
          kernels_.pack_rows(x_.data + row * x_.stride + k, x_.stride, rows, depth, scratch.rows.data());
          MultiplyRows(row, rows, column, columns, depth, k == 0, scratch);
        }
      }
    }
  }

 private:
  const std::byte* WeightAt(int64_t column, int64_t k) const {
    return linear_.weight + (column * linear_.in + k) * SizeOf(linear_.dtype);
  }
  const std::byte* BiasAt(int64_t column) const {
    return linear_.bias != nullptr ? linear_.bias + column * SizeOf(linear_.dtype) : nullptr;
  }

  void PackWeights(int64_t column, int64_t columns, int64_t k, int64_t depth, Scratch& scratch) const {
    for (int64_t c = 0; c < columns; c += kernels_.tile_columns) {
      kernels_.pack_weights(WeightAt(column + c, k), linear_.in, std::min<int64_t>(kernels_.tile_columns, columns - c),
                            depth, scratch.weights.data() + c * depth);
    }
  }

  // What the sums of these columns begin with.
  void Start(int64_t column, int64_t columns, Scratch& scratch) const {
    scratch.start.fill(0);
    if (linear_.bias != nullptr) kernels_.decode(BiasAt(column), columns, scratch.start.data());
  }

  void MultiplyRows(int64_t row, int64_t rows, int64_t column, int64_t columns, int64_t depth, bool first,
                    Scratch& scratch) const {
    const int64_t width = kernels_.tile_columns;
    for (int64_t c = 0; c < columns; c += width) {
      const float* const panel = scratch.weights.data() + c * depth;
      const float* const start = first ? scratch.start.data() + c : nullptr;
      float* const y = y_ + row * y_stride_ + column + c;
      const int64_t present = std::min(width, columns - c);
      if (present == width) {
        kernels_.multiply_tile(scratch.rows.data(), panel, rows, depth, start, y, y_stride_);
        continue;
      }
      // The last columns do not fill a tile: they are computed beside y.
      float* const tile = scratch.tile.data();
      for (int64_t r = 0; r < rows && !first; ++r) std::copy_n(y + r * y_stride_, present, tile + r * width);
      kernels_.multiply_tile(scratch.rows.data(), panel, rows, depth, start, tile, width);
      for (int64_t r = 0; r < rows; ++r) std::copy_n(tile + r * width, present, y + r * y_stride_);
    }
  }

  void ComputeFew(const Part& part) const {
    kernels_.multiply_few(x_.data + part.row * x_.stride, x_.stride, part.row_end - part.row, WeightAt(part.column, 0),
                          BiasAt(part.column), part.column_end - part.column, linear_.in,
                          y_ + part.row * y_stride_ + part.column, y_stride_);
  }

  const MatmulKernels& kernels_;
  const FloatRows x_;
  const LinearParameters linear_;
  float* const y_;
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

#if defined(__x86_64__)
// clang 14 has no __builtin_cpu_supports for it.
bool HasF16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

}  // namespace

const std::vector<MatmulIsa>& MatmulIsas() {
  static const auto& isas = *new std::vector<MatmulIsa>([] {
    std::vector<MatmulIsa> found = {MatmulIsa::kPortable};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c()) {
      found.push_back(MatmulIsa::kAvx2);
    }
    if (__builtin_cpu_supports("avx512f")) found.push_back(MatmulIsa::kAvx512);
#endif
    return found;
  }());
  return isas;
}

int64_t MatmulFewRows(MatmulIsa isa) { return KernelsOf(isa, DType::kFloat32).few_rows; }

void MultiplyFloat32(const FloatRows& x, const LinearParameters& linear, float* y, int64_t y_stride, MatmulIsa isa) {
  const MatmulKernels& kernels = KernelsOf(isa, linear.dtype);
  const Product product(kernels, x, linear, y, y_stride);
  const int64_t panels = (linear.out + kernels.tile_columns - 1) / kernels.tile_columns;
  const int64_t tiles = (x.rows + kernels.tile_rows - 1) / kernels.tile_rows;
  const int64_t threads = at::get_num_threads();
  Grid grid = GridFor(threads, x.rows, panels);
  // More parts than threads, taken one by one: whoever is interrupted, by a transfer say, holds up nobody.
  grid.columns = std::max(grid.columns, panels * kernels.tile_columns / kColumns);
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
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

}  // namespace ditserve
