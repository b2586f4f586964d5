#include "models/kernels/attention.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>

namespace ditserve {
namespace {

// Scores are computed transposed, a panel of queries against some keys: the softmax then works on whole vectors, and
// its result is the panel that the values are multiplied with. Panels stay in the first-level cache; a block of keys
// and values, rearranged, in the second-level cache while all queries of a part pass by.
constexpr int64_t kKeys = 252;        // At most: a multiple of the tile's rows.
constexpr int64_t kQueries = 1024;    // Of a part, at most.
constexpr int64_t kFewQueries = 128;  // Of a part, at least, where there are as many: rearranging keys must pay.

constexpr int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// What is where in a thread's scratch, in words.
constexpr int64_t kQueriesAt = 0;                                              // Panels of [head_dim, tile_columns].
constexpr int64_t kSumsAt = kQueriesAt + kQueries * kMaxHeadDim + kPackSlack;  // The same, of weighted values.
constexpr int64_t kKeysAt = kSumsAt + kQueries * kMaxHeadDim;                  // Tiles of [head_dim, tile_rows].
constexpr int64_t kValuesAt = kKeysAt + kKeys * kMaxHeadDim + kPackSlack;      // Tiles of [keys, tile_rows].
constexpr int64_t kScoresAt = kValuesAt + kKeys * RoundUp(kMaxHeadDim, kMaxTileRows) + kPackSlack;
constexpr int64_t kMaximaAt = kScoresAt + kKeys * kMaxTileColumns;  // For each query, the largest score so far,
constexpr int64_t kTotalsAt = kMaximaAt + kQueries;                 // and what its weights add up to.
static_assert(kTotalsAt + kQueries <= kScratchFloats && kQueries % kMaxTileColumns == 0);

// Some queries of one head. Element: float, or uint16_t for bfloat16.
template <typename Element>
class Part {
 public:
  Part(const TileKernels& kernels, const AttentionInputs<Element>& inputs, int64_t head, int64_t first, int64_t queries)
      : kernels_(kernels),
        dim_(inputs.head_dim),
        queries_(queries),
        panels_((queries + kernels.tile_columns - 1) / kernels.tile_columns),
        tokens_(inputs.k.rows),
        keys_(kKeys / kernels.tile_rows * kernels.tile_rows),
        q_(inputs.q.data + first * inputs.q.stride + head * dim_),
        k_(inputs.k.data + head * dim_),
        v_(inputs.v.data + head * dim_),
        q_stride_(inputs.q.stride),
        k_stride_(inputs.k.stride),
        v_stride_(inputs.v.stride),
        scratch_(ThreadScratch()) {}

  void Compute(Element* out, int64_t out_stride) const {
    PackQueries();
    std::fill_n(scratch_ + kMaximaAt, panels_ * width(), -std::numeric_limits<float>::infinity());
    std::fill_n(scratch_ + kTotalsAt, panels_ * width(), 0.0f);
    for (int64_t key = 0; key < tokens_; key += keys_) {
      const int64_t keys = std::min(keys_, tokens_ - key);
      PackKeys(key, keys);
      PackValues(key, keys);
      for (int64_t panel = 0; panel < panels_; ++panel) AddKeys(panel, keys, key == 0);
    }
    for (int64_t i = 0; i < queries_; ++i) WriteRow(i, out + i * out_stride);
  }

 private:
  static constexpr int64_t kInWord = sizeof(float) / sizeof(Element);

  int64_t LinesOf(int64_t depth) const { return kernels_.Lines(depth, kInWord); }
  static const std::byte* Bytes(const Element* from) { return reinterpret_cast<const std::byte*>(from); }

  int64_t width() const { return kernels_.tile_columns; }

  void PackQueries() const {
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t first = panel * width();
      kernels_.pack_weights(Bytes(q_ + first * q_stride_), q_stride_, std::min(width(), queries_ - first), dim_,
                            scratch_ + kQueriesAt + first * LinesOf(dim_));
    }
  }

  void PackKeys(int64_t first, int64_t keys) const {
    for (int64_t i = 0; i < keys; i += kernels_.tile_rows) {
      kernels_.pack_rows(Bytes(k_ + (first + i) * k_stride_), k_stride_, std::min(kernels_.tile_rows, keys - i), dim_,
                         scratch_ + kKeysAt + i * LinesOf(dim_));
    }
  }

  void PackValues(int64_t first, int64_t keys) const {
    for (int64_t d = 0; d < dim_; d += kernels_.tile_rows) {
      kernels_.pack_columns(Bytes(v_ + first * v_stride_ + d), v_stride_, std::min(kernels_.tile_rows, dim_ - d), keys,
                            scratch_ + kValuesAt + d * LinesOf(keys));
    }
  }

  // Lets a panel of queries attend to the keys that are packed.
  void AddKeys(int64_t panel, int64_t keys, bool first) const {
    static constexpr std::array<float, kMaxTileColumns> kZeros = {};
    const float* const queries = scratch_ + kQueriesAt + panel * width() * LinesOf(dim_);
    float* const sums = scratch_ + kSumsAt + panel * width() * dim_;
    float* const scores = scratch_ + kScoresAt;
    for (int64_t i = 0; i < keys; i += kernels_.tile_rows) {
      kernels_.multiply_tile(scratch_ + kKeysAt + i * LinesOf(dim_), queries, std::min(kernels_.tile_rows, keys - i),
                             LinesOf(dim_), kZeros.data(), scores + i * width(), width());
    }
    const float scale = static_cast<float>(M_LOG2E / std::sqrt(static_cast<double>(dim_)));
    kernels_.soften(scores, keys, scale, scratch_ + kMaximaAt + panel * width(), scratch_ + kTotalsAt + panel * width(),
                    sums, first ? 0 : dim_);
    for (int64_t d = 0; d < dim_; d += kernels_.tile_rows) {
      kernels_.multiply_tile(scratch_ + kValuesAt + d * LinesOf(keys), scores, std::min(kernels_.tile_rows, dim_ - d),
                             LinesOf(keys), first ? kZeros.data() : nullptr, sums + d * width(), width());
    }
  }

  void WriteRow(int64_t query, Element* out) const {
    const int64_t panel = query / width(), column = query % width();
    const float* const sums = scratch_ + kSumsAt + panel * width() * dim_ + column;
    const float total = scratch_[kTotalsAt + query];
    std::array<float, kMaxHeadDim> row;
    for (int64_t d = 0; d < dim_; ++d) row[static_cast<size_t>(d)] = sums[d * width()] / total;
    if constexpr (std::is_same_v<Element, float>) {
      std::copy_n(row.data(), dim_, out);
    } else {
      kernels_.round(row.data(), dim_, out);
    }
  }

  const TileKernels& kernels_;
  const int64_t dim_, queries_, panels_, tokens_, keys_;
  const Element *const q_, *const k_, *const v_;
  const int64_t q_stride_, k_stride_, v_stride_;
  float* const scratch_;
};

template <typename Element>
void Attend(const TileKernels& kernels, const AttentionInputs<Element>& inputs, Element* out, int64_t out_stride) {
  const int64_t threads = at::get_num_threads();
  // Several parts for each thread, taken one by one: whoever is interrupted, by a transfer say, holds up nobody.
  const int64_t most = std::max<int64_t>(1, inputs.q.rows / kFewQueries);
  const int64_t least = (inputs.q.rows + kQueries - 1) / kQueries;
  const int64_t wanted = (4 * threads + inputs.heads - 1) / inputs.heads;
  const int64_t parts = std::clamp(wanted, least, std::max(least, most));
  const int64_t panels = (inputs.q.rows + kernels.tile_columns - 1) / kernels.tile_columns;
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const TileScope scope(kernels);
    for (int64_t i = 0; (i = next++) < inputs.heads * parts;) {
      const int64_t head = i / parts, p = i % parts;
      const int64_t first = panels * p / parts * kernels.tile_columns;
      const int64_t end = std::min(inputs.q.rows, panels * (p + 1) / parts * kernels.tile_columns);
      Part<Element>(kernels, inputs, head, first, end - first)
          .Compute(out + first * out_stride + head * inputs.head_dim, out_stride);
    }
  });
}

}  // namespace

void AttendFloat32(const AttentionInputs<float>& inputs, float* out, int64_t out_stride, Isa isa) {
  Attend(TileKernelsOf(isa, DType::kFloat32, DType::kFloat32), inputs, out, out_stride);
}

void AttendBFloat16(const AttentionInputs<uint16_t>& inputs, uint16_t* out, int64_t out_stride, Isa isa) {
  Attend(TileKernelsOf(isa, DType::kBFloat16, DType::kBFloat16), inputs, out, out_stride);
}

}  // namespace ditserve
