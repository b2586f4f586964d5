#include "models/ops.h"

#include <ATen/ops/addcmul.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/count_nonzero.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/view_as_complex.h>

#include <algorithm>
#include <cmath>

#include "models/float8_product.h"
#include "models/kernels/attention.h"
#include "models/kernels/matmul.h"
#include "models/meta_run.h"

namespace ditserve {
namespace {

constexpr double kEpsilon = 1e-6;

bool IsOnCuda(const at::Tensor& x) { return DeviceTypeOf(x) == at::kCUDA; }

// How many of x's rows to take at a time. On the CPU, so many that what is read again is still in a cache. On a GPU, as
// few pieces as keep temporaries small, of equal size: one takes longer to compute than its launches take to issue.
int64_t RowsAtATime(const at::Tensor& x) {
  constexpr int64_t kCpuBytes = 2 << 20, kCudaBytes = 32 << 20;
  const int64_t row_bytes = x.size(1) * static_cast<int64_t>(x.element_size());
  if (!IsOnCuda(x)) return std::max<int64_t>(1, kCpuBytes / row_bytes);
  const int64_t pieces = std::max<int64_t>(1, (x.size(0) * row_bytes + kCudaBytes - 1) / kCudaBytes);
  return std::max<int64_t>(1, (x.size(0) + pieces - 1) / pieces);
}

// Calls `step(begin, count)` for all of x's rows, some at a time.
template <typename Step>
void ForRows(const at::Tensor& x, Step step) {
  const int64_t at_a_time = RowsAtATime(x);
  for (int64_t begin = 0; begin < x.size(0); begin += at_a_time) step(begin, std::min(at_a_time, x.size(0) - begin));
}

struct RowRange {
  int64_t begin, count;
};

// Pieces of the rows of a product, of so many that rearranging the weights anew weighs little. Each but the first has
// up to `wider` times as many as that: so what is computed on the way to or from rows that are so much wider lies in
// those before its own, which hold nothing yet, or nothing any more, and only beside the first piece it takes memory.
constexpr int64_t kPieceRows = 1032;
std::vector<RowRange> ProductPieces(int64_t rows, int64_t wider) {
  const int64_t others = (rows - 1) / kPieceRows, parts = wider * others + 1;
  const int64_t first = (rows + parts - 1) / parts;
  std::vector<RowRange> pieces = {{0, first}};
  for (int64_t i = 0; i < others; ++i) {
    const int64_t begin = pieces.back().begin + pieces.back().count, end = first + (rows - first) * (i + 1) / others;
    pieces.push_back({begin, end - begin});
  }
  return pieces;
}

int64_t WiderTimes(const at::Tensor& wide, const at::Tensor& narrow) {
  return std::max<int64_t>(1, wide.size(1) / narrow.size(1));
}

struct ItemRows {
  size_t item;
  int64_t begin, count;
};

// Which rows of which items are multiplied together: those of one item, in pieces, or all of several that have no more
// than a piece together.
std::vector<std::vector<ItemRows>> ProductRounds(const Batch& x, int64_t wider) {
  std::vector<std::vector<ItemRows>> rounds;
  int64_t room = 0;  // In the last of them.
  for (size_t item = 0; item < x.size(); ++item) {
    const int64_t rows = x[item].size(0);
    if (rows <= room) {
      rounds.back().push_back({item, 0, rows});
    } else {
      for (const auto& [begin, count] : ProductPieces(rows, wider)) rounds.push_back({{item, begin, count}});
      room = kPieceRows;
    }
    room -= rows;
  }
  return rounds;
}

// A matrix in the memory of `free`, whose values nobody needs; of its own where that is too small.
at::Tensor MatrixIn(const at::Tensor& free, int64_t rows, int64_t columns) {
  if (free.numel() < rows * columns || !free.is_contiguous()) return at::empty({rows, columns}, free.options());
  return free.view({-1}).narrow(0, 0, rows * columns).view({rows, columns});
}

// Whether our products and our attention can read or write it, as elements of such a dtype. They allocate nothing.
bool IsRows(const at::Tensor& x, at::ScalarType dtype) {
  return x.is_cpu() && x.scalar_type() == dtype && x.stride(1) == 1;
}

template <typename Element>
Rows<Element> RowsOf(const at::Tensor& x) {
  return {static_cast<const Element*>(x.const_data_ptr()), x.stride(0), x.size(0)};
}

template <typename Element>
Factor<Element> FactorOf(const at::Tensor& x, const at::Tensor& out) {
  return {RowsOf<Element>(x), static_cast<Element*>(out.mutable_data_ptr()), out.stride(0)};
}

template <typename Element>
AttentionInputs<Element> AttentionInputsOf(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           int64_t head_dim) {
  return {RowsOf<Element>(q), RowsOf<Element>(k), RowsOf<Element>(v), q.size(1) / head_dim, head_dim};
}

// Where no kernel runs, counts what a kernel allocates inside.
void CountWorkspace(const at::Tensor& x, int64_t bytes) {
  if (x.is_meta()) at::empty({bytes}, x.options().dtype(at::kByte));
}

// In how many parts flash attention computes the keys of each block of queries, so that so few blocks are enough for a
// GPU's multiprocessors: LibTorch 2.13, flash_api.cpp, num_splits_heuristic.
int64_t FlashSplits(int64_t blocks, int64_t multiprocessors, int64_t key_blocks) {
  const int64_t slots = 2 * multiprocessors;
  if (static_cast<double>(blocks) >= 0.8 * static_cast<double>(slots)) return 1;
  const auto keys_of = [key_blocks](int64_t splits) { return (key_blocks + splits - 1) / splits; };
  const auto efficiency = [&](int64_t splits) {
    if (splits > 1 && keys_of(splits) == keys_of(splits - 1)) return 0.0;
    const double waves = static_cast<double>(blocks * splits) / static_cast<double>(slots);
    return waves / std::ceil(waves);
  };
  const int64_t most = std::min<int64_t>({128, slots, key_blocks});
  double best = 0;
  for (int64_t splits = 1; splits <= most; ++splits) best = std::max(best, efficiency(splits));
  int64_t splits = 1;
  while (splits < most && efficiency(splits) < 0.85 * best) ++splits;
  return splits;
}

// What flash attention takes: a logarithm for each query and, where it splits the keys, results of each part in
// float32. The most of any GPU: those that serve have up to 192 multiprocessors.
int64_t FlashWorkspaceBytes(int64_t tokens, int64_t heads, int64_t head_dim) {
  const int64_t key_block = head_dim <= 64 ? 256 : head_dim <= 128 ? 128 : 64;
  int64_t splits = 1;
  for (int64_t multiprocessors = 16; multiprocessors <= 192; ++multiprocessors) {
    splits = std::max(splits,
                      FlashSplits(heads * ((tokens + 63) / 64), multiprocessors, (tokens + key_block - 1) / key_block));
  }
  const int64_t of_a_part = heads * tokens * (head_dim + 1) * 4;
  return heads * tokens * 4 + (splits > 1 ? splits * of_a_part : 0);
}

// x normed along its channels, without weights. LibTorch has none for meta tensors in C++.
at::Tensor LayerNorm(const at::Tensor& x) {
  if (!x.is_meta()) return at::layer_norm(x, {x.size(1)}, {}, {}, kEpsilon);
  at::Tensor normed = at::empty_like(x);
  if (IsOnCuda(x)) {  // There it also takes each row's mean and deviation.
    const at::Tensor mean = at::empty({x.size(0)}, x.options().dtype(at::kFloat)), deviation = at::empty_like(mean);
  }
  return normed;
}

// What kernels have to do, in multiply-adds. It tells how long one size takes from how long another did, so only its
// proportions count: reading a weight takes about as long as multiplying it with so many rows, and an element of a
// tensor that is read and written about as long as so many.
constexpr double kRowsOfReading = 24, kMultiplyAddsOfElement = 100;

void CountElements(const at::Tensor& x, double times) {
  if (x.is_meta()) CountMetaWork(times * kMultiplyAddsOfElement * static_cast<double>(x.numel()));
}

// Whether a product may be added without being rounded first. The references round it: below float32 that shows, and in
// float32 it is less than what sums in another order change.
bool FusesMultiplyAdd(const at::Tensor& x) { return x.scalar_type() == at::kFloat; }

void ModulatedLayerNormInto(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift,
                            const at::Tensor& target) {
  CountElements(x, 2);
  const at::Tensor factor = scale.add(1);
  ForRows(x, [&](int64_t begin, int64_t count) {
    const at::Tensor rows = x.narrow(0, begin, count);
    const at::Tensor normed = LayerNorm(rows);
    at::Tensor result = target.narrow(0, begin, count);
    if (FusesMultiplyAdd(rows)) {
      at::addcmul_out(result, shift, normed, factor);
    } else {
      at::mul_out(result, normed, factor).add_(shift);
    }
  });
}

// x / rms(x) over the last dimension in one kernel, which computes in float32 and rounds what it returns, as the
// references do before they multiply with weights.
at::Tensor RmsNormalized(const at::Tensor& x) {
  if (!x.is_meta()) return at::rms_norm(x, {x.size(-1)}, {}, kEpsilon);
  const at::Tensor inverses = at::empty({x.numel() / x.size(-1)}, x.options().dtype(at::kFloat));
  return at::empty_like(x);
}

LinearParameters ParametersOf(const Weights& linear) {
  const at::Tensor& weight = linear.weight();
  TORCH_INTERNAL_ASSERT(weight.is_contiguous() && linear.bias().scalar_type() == weight.scalar_type());
  return {static_cast<const std::byte*>(weight.const_data_ptr()),
          static_cast<const std::byte*>(linear.bias().const_data_ptr()), DTypeOf(weight.scalar_type()), weight.size(0),
          weight.size(1)};
}

// Whether a product is to be made in float8. (In float32 arithmetic weights in float8 are values like others.)
bool IsFloat8Product(const at::Tensor& x, const at::Tensor& weight) {
  return weight.scalar_type() == at::kFloat8_e4m3fn && x.scalar_type() != at::kFloat;
}

// Whether the product is one of ours, which read a weight once for all items.
bool IsOurProduct(const at::Tensor& x, const at::Tensor& weight) {
  const bool has_kernels = x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16;
  return has_kernels && DeviceTypeOf(x) == at::kCPU && !IsFloat8Product(x, weight);
}

}  // namespace

Batch Linear(const Batch& x, const Weights& linear) {
  Batch out;
  for (const at::Tensor& item : x) out.push_back(at::empty({item.size(0), linear.weight().size(0)}, item.options()));
  LinearInto(x, linear, out);
  return out;
}

void LinearInto(const Batch& x, const Weights& linear, const Batch& out) {
  const at::Tensor& weight = linear.weight();
  std::vector<FloatFactor> in_float;
  std::vector<BFloat16Factor> in_bfloat16;
  for (size_t i = 0; i < x.size(); ++i) {
    at::Tensor target = out[i];
    if (x[i].is_meta()) {
      const double reading = i == 0 || !IsOurProduct(x[i], weight) ? kRowsOfReading : 0;
      CountMetaWork((static_cast<double>(x[i].size(0)) + reading) * static_cast<double>(weight.numel()));
    }
    if (IsFloat8Product(x[i], weight)) {
      MultiplyFloat8(x[i], weight, linear.bias(), target);
    } else if (IsRows(x[i], at::kFloat) && IsRows(target, at::kFloat)) {
      in_float.push_back(FactorOf<float>(x[i], target));
    } else if (IsRows(x[i], at::kBFloat16) && IsRows(target, at::kBFloat16)) {
      in_bfloat16.push_back(FactorOf<uint16_t>(x[i], target));
    } else {
      at::addmm_out(target, linear.bias(), x[i], weight.t());
    }
  }
  if (!in_float.empty()) MultiplyFloat32(in_float, ParametersOf(linear));
  if (!in_bfloat16.empty()) MultiplyBFloat16(in_bfloat16, ParametersOf(linear));
}

// Reading the weights takes as long for some rows as for one. Our own products have the bits of each row's own: those
// in float32 while there are few.
void LinearEachInto(const Batch& rows, const Weights& linear, const Batch& out) {
  if (rows.size() == 1 || !IsOurProduct(rows.front(), linear.weight())) return LinearInto(rows, linear, out);
  for (size_t begin = 0; begin < rows.size(); begin += kJoinedRows) {
    const size_t count = std::min(kJoinedRows, rows.size() - begin);
    const at::Tensor products = Linear({at::cat(at::TensorList(rows).slice(begin, count))}, linear).front();
    for (size_t i = 0; i < count; ++i) out[begin + i].copy_(products.narrow(0, static_cast<int64_t>(i), 1));
  }
}

Batch Silu(const Batch& x) {
  Batch out;
  for (const at::Tensor& item : x) out.push_back(at::silu(item));
  return out;
}

void RmsNormInPlace(const Batch& x, const Weights& norm) {
  const int64_t channels = norm.weight().size(0);
  for (const at::Tensor& item : x) {
    CountElements(item, 2);
    const at::Tensor weight = norm.weight().to(item.scalar_type());
    ForRows(item, [&](int64_t begin, int64_t count) {
      const at::Tensor groups = item.narrow(0, begin, count).view({count, -1, channels});
      if (IsOnCuda(item)) {
        at::Tensor target = groups;
        at::mul_out(target, RmsNormalized(groups), weight);
        return;
      }
      const at::Tensor length = at::linalg_vector_norm(groups, 2, at::IntArrayRef{-1}, /*keepdim=*/true, at::kFloat);
      const at::Tensor inverse = length.square_().div_(static_cast<double>(channels)).add_(kEpsilon).rsqrt_();
      groups.mul_(inverse).mul_(weight);
    });
  }
}

Batch ModulatedLayerNorm(const Batch& x, const Batch& scale, const Batch& shift) {
  Batch out;
  for (size_t i = 0; i < x.size(); ++i) {
    out.push_back(at::empty_like(x[i]));
    ModulatedLayerNormInto(x[i], scale[i], shift[i], out[i]);
  }
  return out;
}

Batch ModulatedLinear(const Batch& x, const Batch& scale, const Batch& shift, const Weights& linear) {
  if (IsOnCuda(x.front())) return Linear(ModulatedLayerNorm(x, scale, shift), linear);
  Batch out;
  for (const at::Tensor& item : x) out.push_back(at::empty({item.size(0), linear.weight().size(0)}, item.options()));
  std::vector<std::vector<ItemRows>> rounds = ProductRounds(x, WiderTimes(out.front(), x.front()));
  std::reverse(rounds.begin(), rounds.end());
  for (const std::vector<ItemRows>& round : rounds) {
    Batch normed, products;
    for (const auto& [i, begin, count] : round) {
      normed.push_back(MatrixIn(out[i].narrow(0, 0, begin), count, x[i].size(1)));
      products.push_back(out[i].narrow(0, begin, count));
      ModulatedLayerNormInto(x[i].narrow(0, begin, count), scale[i], shift[i], normed.back());
    }
    LinearInto(normed, linear, products);
  }
  return out;
}

void GeluInPlace(const Batch& x, Numerics numerics) {
  for (const at::Tensor& item : x) {
    CountElements(item, 1);
    at::Tensor target = item;
    if (numerics == Numerics::kDiffusers) {
      at::gelu_(target, "tanh");
      continue;
    }
    ForRows(target, [&](int64_t begin, int64_t count) {
      const at::Tensor rows = target.narrow(0, begin, count);
      rows.mul_(rows.mul(1.702).sigmoid_());
    });
  }
}

void AddGated(const Batch& x, const Batch& gate, const Batch& y) {
  for (size_t i = 0; i < x.size(); ++i) {
    CountElements(x[i], 1);
    if (FusesMultiplyAdd(x[i])) {
      x[i].addcmul_(y[i], gate[i]);
      continue;
    }
    if (IsOnCuda(x[i])) {
      x[i].add_(y[i].mul_(gate[i]));
      continue;
    }
    ForRows(x[i], [&](int64_t begin, int64_t count) {
      x[i].narrow(0, begin, count).add_(y[i].narrow(0, begin, count).mul(gate[i]));
    });
  }
}

void AddGatedLinear(const Batch& x, const Batch& gate, const Batch& y, const Weights& linear) {
  if (IsOnCuda(x.front())) return AddGated(x, gate, Linear(y, linear));
  for (const std::vector<ItemRows>& round : ProductRounds(x, WiderTimes(y.front(), x.front()))) {
    Batch sums, gates, factors, products;
    for (const auto& [i, begin, count] : round) {
      sums.push_back(x[i].narrow(0, begin, count));
      gates.push_back(gate[i]);
      factors.push_back(y[i].narrow(0, begin, count));
      products.push_back(MatrixIn(y[i].narrow(0, 0, begin), count, x[i].size(1)));
    }
    LinearInto(factors, linear, products);
    AddGated(sums, gates, products);
  }
}

void RotateInPlace(const at::Tensor& x, const at::Tensor& rotary) {
  CountElements(x, 1);
  const at::Tensor pairs = x.view({x.size(0), -1, rotary.size(1), 2});  // [tokens, heads, D / 2, 2]
  const at::Tensor turn = rotary.unsqueeze(1);
  if (x.scalar_type() == at::kFloat) {
    at::view_as_complex(pairs).mul_(turn);
    return;
  }
  ForRows(x, [&](int64_t begin, int64_t count) {
    const at::Tensor wide = pairs.narrow(0, begin, count).to(at::kFloat);
    at::view_as_complex(wide).mul_(turn.narrow(0, begin, count));
    pairs.narrow(0, begin, count).copy_(wide);
  });
}

at::Tensor Attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t head_dim) {
  // Meta tensors would take the path that holds all scores, which no device does.
  if (q.is_meta()) {
    at::Tensor out = at::empty_like(q);
    const int64_t tokens = k.size(0);  // Of which some or all are queries.
    CountMetaWork(2.0 * static_cast<double>(tokens) * static_cast<double>(q.numel()));
    if (IsOnCuda(q)) {
      CountWorkspace(q, FlashWorkspaceBytes(tokens, q.size(1) / head_dim, head_dim));
    }
    return out;
  }
  if (head_dim <= kMaxHeadDim && IsRows(q, at::kFloat)) {
    at::Tensor out = at::empty_like(q);
    AttendFloat32(AttentionInputsOf<float>(q, k, v, head_dim), out.data_ptr<float>(), out.stride(0));
    return out;
  }
  if (head_dim <= kMaxHeadDim && IsRows(q, at::kBFloat16)) {
    at::Tensor out = at::empty_like(q);
    AttendBFloat16(AttentionInputsOf<uint16_t>(q, k, v, head_dim), static_cast<uint16_t*>(out.data_ptr()),
                   out.stride(0));
    return out;
  }
  const auto heads = [&](const at::Tensor& x) {
    return x.view({1, x.size(0), -1, head_dim}).transpose(1, 2);  // [1, heads, tokens, head_dim]
  };
  const at::Tensor out = at::scaled_dot_product_attention(heads(q), heads(k), heads(v));
  return out.transpose(1, 2).reshape(q.sizes());
}

at::Tensor TimeChannels(const at::Tensor& timestep) {
  constexpr int64_t kHalf = kTimeChannels / 2;
  const at::Tensor frequencies = at::exp(at::arange(kHalf, at::kFloat).mul_(-std::log(10000.0)).div_(kHalf));
  const at::Tensor angles = timestep.to(at::kFloat).view({1, 1}).mul(frequencies).mul_(1000);
  return at::cat({at::cos(angles), at::sin(angles)}, 1);
}

int64_t CountNonFinite(const at::Tensor& x) {
  constexpr int64_t kAtATime = 1 << 16;
  const at::Tensor elements = x.view({-1});
  int64_t finite = 0;
  for (int64_t begin = 0; begin < elements.numel(); begin += kAtATime) {
    const int64_t count = std::min(kAtATime, elements.numel() - begin);
    finite += at::count_nonzero(at::isfinite(elements.narrow(0, begin, count))).item<int64_t>();
  }
  return elements.numel() - finite;
}

Batch Chunk(const Batch& x, int64_t width, int64_t index) {
  Batch out;
  for (const at::Tensor& item : x) out.push_back(item.narrow(1, index * width, width));
  return out;
}

}  // namespace ditserve
