#include "models/kernels/tile_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define DITSERVE_KERNEL __attribute__((target("avx512f,avx512bf16,amx-tile,amx-bf16")))
#define DITSERVE_LANES 16
#define DITSERVE_HAS_PAIRS
#include "models/kernels/tile_avx512_bf16.inc"
#include "models/kernels/tile_kernels.inc"

namespace ditserve {
namespace {

// A register of the tile unit holds 16 lines of 16 words. Four of the eight hold sums, of 32 rows and 32 columns.
constexpr int64_t kSide = 16;
constexpr int64_t kAmxTileRows = 2 * kSide;
static_assert(kAmxTileRows <= kMaxTileRows && kAmxProductBlocks.lines % kSide == 0 &&
              kAmxProductBlocks.rows % kAmxTileRows == 0 && kAmxProductBlocks.sum_rows % kAmxTileRows == 0);
constexpr int64_t kStepWords = kAmxTileRows * kSide;  // Of packed rows, for each 16 lines: 16 words of each row.

// What LDTILECFG takes (Intel's manual): of each of the eight registers used the bytes of a line, and the lines.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t line_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t lines[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// Not within Begin: GCC 12 does not know that the instruction reads all of it.
constexpr TileConfiguration kConfiguration;

DITSERVE_KERNEL void Begin() { _tile_loadconfig(&kConfiguration); }

DITSERVE_KERNEL void End() { _tile_release(); }

DITSERVE_KERNEL void PackRows(const std::byte* x, int64_t stride, int64_t rows, int64_t depth, float* packed) {
  const int64_t bytes = depth * InBFloat16::kSize;
  for (int64_t r = 0; r < rows; ++r) {
    const std::byte* const from = x + r * stride * InBFloat16::kSize;
    float* to = packed + r * kSide;
    for (int64_t at = 0; at < bytes; at += sizeof(Floats), to += kStepWords) {
      const int64_t present = Smaller(sizeof(Floats), bytes - at);
      Store(to, present == sizeof(Floats) ? Load<Floats>(from + at) : LoadSome<Floats>(from + at, present));
    }
  }
}

DITSERVE_KERNEL void PackColumns(const std::byte* x, int64_t stride, int64_t rows, int64_t depth, float* packed) {
  for (int64_t k = 0; k < depth; k += 2 * kSide) {
    for (int64_t r = 0; r < rows; r += kSide) {
      const int64_t bytes = Smaller(kSide, rows - r) * InBFloat16::kSize;
      Words block[kLanes];
      for (int64_t i = 0; i < kSide; ++i) {
        std::byte lines[2][kLanes * InBFloat16::kSize] = {};
        for (int64_t j = 0; j < 2 && k + 2 * i + j < depth; ++j) {
          std::memcpy(lines[j], x + ((k + 2 * i + j) * stride + r) * InBFloat16::kSize, static_cast<size_t>(bytes));
        }
        block[i] = WidenHalfWords(lines[0]) | WidenHalfWords(lines[1]) << 16;
      }
      Transpose(block);
      for (int64_t i = 0; i < kSide; ++i) Store(packed + (r + i) * kSide, Floats(block[i]));
    }
    packed += kStepWords;
  }
}

// kHalves x 16 rows of y, all of which are written.
template <int kHalves>
DITSERVE_KERNEL void MultiplyHalves(const float* packed_rows, const float* panel, int64_t lines, const float* start,
                                    float* y, int64_t y_stride) {
  constexpr int64_t kLineBytes = kSide * sizeof(float), kPanelBytes = kTileColumns * sizeof(float);
  const auto y_bytes = static_cast<int64_t>(y_stride * sizeof(float));
  // A start is one line for all rows.
  const float* const from = start != nullptr ? start : y;
  const int64_t from_bytes = start != nullptr ? 0 : y_bytes;
  const float* const lower = start != nullptr ? start : y + kSide * y_stride;
  _tile_loadd(0, from, from_bytes);
  _tile_loadd(1, from + kSide, from_bytes);
  if constexpr (kHalves == 2) {
    _tile_loadd(2, lower, from_bytes);
    _tile_loadd(3, lower + kSide, from_bytes);
  }
  for (int64_t k = 0; k < lines; k += kSide) {
    _tile_loadd(4, packed_rows, kLineBytes);
    _tile_loadd(6, panel, kPanelBytes);
    _tile_loadd(7, panel + kSide, kPanelBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kHalves == 2) {
      _tile_loadd(5, packed_rows + kSide * kSide, kLineBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    packed_rows += kStepWords;
    panel += kSide * kTileColumns;
  }
  _tile_stored(0, y, y_bytes);
  _tile_stored(1, y + kSide, y_bytes);
  if constexpr (kHalves == 2) {
    _tile_stored(2, y + kSide * y_stride, y_bytes);
    _tile_stored(3, y + kSide * y_stride + kSide, y_bytes);
  }
}

void MultiplyTile(const float* packed_rows, const float* panel, int64_t rows, int64_t lines, const float* start,
                  float* y, int64_t y_stride) {
  if (rows == kAmxTileRows) return MultiplyHalves<2>(packed_rows, panel, lines, start, y, y_stride);
  alignas(64) float tile[kAmxTileRows * kTileColumns];
  const size_t line = kTileColumns * sizeof(float);
  for (int64_t r = 0; r < rows && start == nullptr; ++r) std::memcpy(tile + r * kTileColumns, y + r * y_stride, line);
  // GCC's intrinsics do not say that they read memory.
  asm volatile("" : : "r"(tile) : "memory");
  if (rows > kSide) {
    MultiplyHalves<2>(packed_rows, panel, lines, start, tile, kTileColumns);
  } else {
    MultiplyHalves<1>(packed_rows, panel, lines, start, tile, kTileColumns);
  }
  for (int64_t r = 0; r < rows; ++r) std::memcpy(y + r * y_stride, tile + r * kTileColumns, line);
}

constexpr TileKernels kAmxKernels = {kAmxTileRows,
                                     kTileColumns,
                                     /*line_multiple=*/kSide,
                                     /*few_rows=*/0,
                                     kAmxProductBlocks,
                                     Begin,
                                     End,
                                     PackWeights<Float32, InBFloat16::kSize>,
                                     PackRows,
                                     PackColumns,
                                     MultiplyTile,
                                     /*multiply_few=*/nullptr,
                                     Decode<BFloat16>,
                                     Soften<InBFloat16, kSide>,
                                     Round};

}  // namespace

const TileKernels& AmxBFloat16TileKernels() { return kAmxKernels; }

}  // namespace ditserve

#endif
