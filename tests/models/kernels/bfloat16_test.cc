#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/devices/cast.h"
#include "models/kernels/attention.h"
#include "models/kernels/matmul.h"
#include "models/seeded_values.h"
#include "tests/models/kernels/isa_name.h"

namespace ditserve {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
constexpr uint16_t kGap = 0x4642;

uint16_t Round(float value) {
  uint16_t rounded = 0;
  Cast(&value, DType::kFloat32, {}, &rounded, DType::kBFloat16, 1);
  return rounded;
}

float Widen(uint16_t value) {
  float wide = 0;
  Cast(&value, DType::kBFloat16, {}, &wide, DType::kFloat32, 1);
  return wide;
}

// Seeded values in bfloat16: rows of `width`, `gap` elements apart.
class Matrix {
 public:
  Matrix(const std::string& name, int64_t rows, int64_t width, int64_t gap, float spread = 1)
      : width_(width), stride_(width + gap), elements_(static_cast<size_t>(rows * stride_)) {
    std::vector<float> values(elements_.size());
    FillSeeded(7, name, 0, rows * stride_, 0.0f, spread, values.data());
    std::transform(values.begin(), values.end(), elements_.begin(), Round);
  }

  const uint16_t* row(int64_t r) const { return elements_.data() + r * stride_; }
  const std::byte* bytes() const { return reinterpret_cast<const std::byte*>(elements_.data()); }
  float At(int64_t r, int64_t c) const { return Widen(row(r)[c]); }
  void Set(int64_t r, int64_t c, float value) { elements_[static_cast<size_t>(r * stride_ + c)] = Round(value); }
  BFloat16Rows Rows(int64_t begin, int64_t end) const { return {row(begin), stride_, end - begin}; }

  // Writes to a matrix with gaps, which must stay, and returns what is between them.
  template <typename Write>
  static std::vector<uint16_t> Written(int64_t rows, int64_t width, Write write) {
    const int64_t stride = width + 5;
    std::vector<uint16_t> elements(static_cast<size_t>(rows * stride), kGap), dense;
    write(elements.data(), stride);
    for (int64_t r = 0; r < rows; ++r) {
      const auto row = elements.begin() + r * stride;
      dense.insert(dense.end(), row, row + width);
      EXPECT_EQ(std::count(row + width, row + stride, kGap), 5);
    }
    return dense;
  }

 private:
  const int64_t width_, stride_;
  std::vector<uint16_t> elements_;
};

class Product {
 public:
  Product(int64_t rows, int64_t out, int64_t in)
      : rows_(rows), out_(out), in_(in), x("x", rows, in, 3), weight("weight", out, in, 0), bias("bias", 1, out, 0) {}

  // Rows [begin, end) of y, of factors that end at `cuts` and at `end`.
  std::vector<uint16_t> Compute(Isa isa, int64_t begin, int64_t end, std::vector<int64_t> cuts = {}) const {
    return Matrix::Written(end - begin, out_, [&](uint16_t* y, int64_t stride) {
      const LinearParameters linear = {weight.bytes(), has_bias ? bias.bytes() : nullptr, DType::kBFloat16, out_, in_};
      std::vector<BFloat16Factor> factors;
      cuts.push_back(end);
      for (int64_t row = begin; const int64_t cut : cuts) {
        factors.push_back({x.Rows(row, cut), y + (row - begin) * stride, stride});
        row = cut;
      }
      MultiplyBFloat16(factors, linear, isa);
    });
  }
  std::vector<uint16_t> Compute(Isa isa) const { return Compute(isa, 0, rows_); }

  uint16_t Expected(Isa isa, int64_t r, int64_t c) const {
    return Round(isa == Isa::kAmxBFloat16 ? AddedByTiles(r, c) : AddedInPairs(isa, r, c));
  }

  // As Intel's manual says that VDPBF16PS adds, in blocks. The portable set has no instruction that adds and
  // multiplies.
  float AddedInPairs(Isa isa, int64_t r, int64_t c) const {
    constexpr int64_t kBlock = 768;
    const auto add = [&](int64_t k, float sum) {
      const float a = x.At(r, k), b = weight.At(c, k);
      return isa == Isa::kPortable ? a * b + sum : std::fma(a, b, sum);
    };
    float y = has_bias ? bias.At(0, c) : 0;
    for (int64_t begin = 0; begin < in_; begin += kBlock) {
      float sum = 0;
      for (int64_t k = begin; k < std::min(in_, begin + kBlock); k += 2) {
        if (k + 1 < in_) sum = add(k + 1, sum);
        sum = add(k, sum);
      }
      y += sum;
    }
    return y;
  }

  // As Intel's manual says that TDPBF16PS does.
  float AddedByTiles(int64_t r, int64_t c) const {
    constexpr int64_t kStep = 32;
    float y = has_bias ? bias.At(0, c) : 0;
    for (int64_t begin = 0; begin < in_; begin += kStep) {
      float sums[2] = {};
      for (int64_t k = begin; k < std::min(in_, begin + kStep); ++k) {
        sums[k % 2] = std::fma(x.At(r, k), weight.At(c, k), sums[k % 2]);
      }
      y += sums[0] + sums[1];
    }
    return y;
  }

  void ExpectIsRight(Isa isa) const {
    const std::vector<uint16_t> y = Compute(isa);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < out_; ++c) {
        ASSERT_EQ(y[static_cast<size_t>(r * out_ + c)], Expected(isa, r, c)) << r << ", " << c;
      }
    }
  }

 private:
  const int64_t rows_, out_, in_;

 public:
  Matrix x, weight, bias;
  bool has_bias = true;
};

class BFloat16Test : public ::testing::TestWithParam<Isa> {};

TEST_P(BFloat16Test, AProductHasTheSumsOfItsOrderForEveryNumberOfRows) {
  for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16, 17, 25, 32, 33, 145, 530}) {
    SCOPED_TRACE(rows);
    Product(rows, 70, 50).ExpectIsRight(GetParam());
  }
}

TEST_P(BFloat16Test, AProductHasTheSumsOfItsOrderForSizesThatFillNoBlock) {
  for (const auto& [out, in] : {std::tuple(1, 1), std::tuple(1, 301), std::tuple(33, 1), std::tuple(31, 15),
                                std::tuple(64, 257), std::tuple(1100, 19), std::tuple(413, 800), std::tuple(3, 8201)}) {
    SCOPED_TRACE(absl::StrCat(out, " ", in));
    Product(14, out, in).ExpectIsRight(GetParam());
  }
}

TEST_P(BFloat16Test, AProductNeedsNoBias) {
  Product product(5, 40, 40);
  product.has_bias = false;
  product.ExpectIsRight(GetParam());
}

TEST_P(BFloat16Test, ARowOfAProductDependsOnItselfAlone) {
  const Product product(1200, 100, 1700);
  const std::vector<uint16_t> all = product.Compute(GetParam());
  for (const auto& [begin, end] : {std::tuple(0, 1), std::tuple(2, 7), std::tuple(5, 145), std::tuple(131, 1174)}) {
    const std::vector<uint16_t> some = product.Compute(GetParam(), begin, end);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin() + begin * 100)) << begin;
  }
  const int threads = at::get_num_threads();
  for (const int team : {1, 2, 4}) {
    at::set_num_threads(team);
    EXPECT_EQ(product.Compute(GetParam(), 0, 1200, {1, 6, 6, 140, 300, 1100}), all) << "of several factors";
  }
  at::set_num_threads(threads);
}

TEST_P(BFloat16Test, AFactorOfMoreRowsThanAreMultipliedTogetherDoesNotDependOnTheOthers) {
  const Product product(5000, 40, 100);
  EXPECT_EQ(product.Compute(GetParam(), 0, 5000, {700, 1900, 1950, 4300}), product.Compute(GetParam()));
}

TEST_P(BFloat16Test, AProductDoesNotDependOnTheNumberOfThreads) {
  const int threads = at::get_num_threads();
  for (const auto& [rows, out] : {std::tuple(2, 200), std::tuple(300, 200), std::tuple(1100, 33)}) {
    const Product product(rows, out, 500);
    at::set_num_threads(1);
    const std::vector<uint16_t> alone = product.Compute(GetParam());
    for (const int team : {2, 3, 4}) {
      at::set_num_threads(team);
      EXPECT_EQ(product.Compute(GetParam()), alone) << team << " threads";
    }
    at::set_num_threads(threads);
  }
}

// Infinity above another element is, as a word, a float32 that is a signalling NaN.
TEST_P(BFloat16Test, AProductPassesOnWhatIsNotFinite) {
  Product product(6, 40, 40);
  product.x.Set(0, 2, kNan);
  product.x.Set(1, 1, kInfinity);
  product.x.Set(2, 2, -kInfinity);
  product.weight.Set(7, 3, kInfinity);
  product.weight.Set(8, 0, kNan);
  const std::vector<uint16_t> y = product.Compute(GetParam());
  const auto at = [&](int64_t r, int64_t c) { return Widen(y[static_cast<size_t>(r * 40 + c)]); };
  for (int64_t c = 0; c < 7; ++c) {
    EXPECT_TRUE(std::isnan(at(0, c))) << c;
    EXPECT_TRUE(std::isinf(at(1, c)) && std::isinf(at(2, c))) << c;
    EXPECT_TRUE(std::isfinite(at(5, c))) << c;
  }
  for (int64_t r = 3; r < 6; ++r) EXPECT_TRUE(std::isinf(at(r, 7)) && std::isnan(at(r, 8))) << r;
}

class Attention {
 public:
  Attention(int64_t queries, int64_t keys, int64_t heads, int64_t head_dim, float spread = 1)
      : queries_(queries),
        keys_(keys),
        heads_(heads),
        dim_(head_dim),
        q("q", queries, heads * head_dim, 1, spread),
        k("k", keys, heads * head_dim, 2, spread),
        v("v", keys, heads * head_dim, 3) {}

  int64_t width() const { return heads_ * dim_; }

  std::vector<uint16_t> Compute(Isa isa, int64_t begin, int64_t end) const {
    return Matrix::Written(end - begin, width(), [&](uint16_t* out, int64_t stride) {
      AttendBFloat16({q.Rows(begin, end), k.Rows(0, keys_), v.Rows(0, keys_), heads_, dim_}, out, stride, isa);
    });
  }
  std::vector<uint16_t> Compute(Isa isa) const { return Compute(isa, 0, queries_); }

  // By the definition, in double. Weights and the result are rounded: each by 2^-8 of itself, at most.
  void ExpectIsRight(Isa isa) const {
    const std::vector<uint16_t> found = Compute(isa);
    std::vector<double> weights(static_cast<size_t>(keys_));
    for (int64_t i = 0; i < queries_; ++i) {
      for (int64_t h = 0; h < heads_; ++h) {
        const double total = WeightsOf(i, h * dim_, weights);
        for (int64_t d = h * dim_; d < (h + 1) * dim_; ++d) {
          double sum = 0, magnitude = 0;
          for (int64_t key = 0; key < keys_; ++key) {
            const double term = weights[static_cast<size_t>(key)] * v.At(key, d) / total;
            sum += term;
            magnitude += std::abs(term);
          }
          const double tolerance = (magnitude + std::abs(sum)) * 0x1.02p-8 + 4e-6;
          ASSERT_NEAR(Widen(found[static_cast<size_t>(i * width() + d)]), sum, tolerance) << i << ", " << d;
        }
      }
    }
  }

 private:
  // What the softmax of query i's scores is made of, and the sum of that.
  double WeightsOf(int64_t i, int64_t first, std::vector<double>& weights) const {
    double largest = -std::numeric_limits<double>::infinity(), total = 0;
    for (int64_t key = 0; key < keys_; ++key) {
      double score = 0;
      for (int64_t d = first; d < first + dim_; ++d) score += static_cast<double>(q.At(i, d)) * k.At(key, d);
      weights[static_cast<size_t>(key)] = score / std::sqrt(static_cast<double>(dim_));
      largest = std::max(largest, weights[static_cast<size_t>(key)]);
    }
    for (double& weight : weights) total += weight = std::exp(weight - largest);
    return total;
  }

  const int64_t queries_, keys_, heads_, dim_;

 public:
  Matrix q, k, v;
};

TEST_P(BFloat16Test, AttentionIsRightForEveryNumberOfTokens) {
  for (const int64_t tokens : {1, 2, 5, 6, 7, 15, 16, 17, 33, 223, 224, 225, 251, 252, 253, 505}) {
    SCOPED_TRACE(tokens);
    Attention(std::min<int64_t>(tokens, 40), tokens, 2, 24).ExpectIsRight(GetParam());
  }
}

TEST_P(BFloat16Test, AttentionIsRightForEveryHeadDimension) {
  for (const int64_t head_dim :
       {int64_t{1}, int64_t{6}, int64_t{11}, int64_t{12}, int64_t{128}, int64_t{131}, kMaxHeadDim}) {
    SCOPED_TRACE(head_dim);
    Attention(20, 260, 3, head_dim).ExpectIsRight(GetParam());
  }
}

TEST_P(BFloat16Test, ARowOfAttentionDoesNotDependOnTheOthers) {
  const Attention full(1100, 301, 2, 16);
  const std::vector<uint16_t> all = full.Compute(GetParam());
  for (const auto& [begin, end] : {std::tuple(0, 1), std::tuple(3, 40), std::tuple(500, 1100)}) {
    const std::vector<uint16_t> some = full.Compute(GetParam(), begin, end);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin() + begin * full.width())) << begin;
  }
}

TEST_P(BFloat16Test, AttentionDoesNotDependOnTheNumberOfThreads) {
  const int threads = at::get_num_threads();
  const Attention some(1100, 301, 2, 16);
  at::set_num_threads(1);
  const std::vector<uint16_t> alone = some.Compute(GetParam());
  for (const int team : {2, 3, 8}) {
    at::set_num_threads(team);
    EXPECT_EQ(some.Compute(GetParam()), alone) << team << " threads";
  }
  at::set_num_threads(threads);
}

TEST_P(BFloat16Test, AttentionPassesOnWhatIsNotFinite) {
  Attention some(20, 21, 2, 16);
  some.q.Set(3, 0, kNan);
  some.q.Set(4, 16, kInfinity);
  some.v.Set(7, 5, kNan);
  some.v.Set(9, 7, kInfinity);
  const std::vector<uint16_t> out = some.Compute(GetParam());
  const auto at = [&](int64_t row, int64_t column) { return Widen(out[static_cast<size_t>(row * 32 + column)]); };
  EXPECT_TRUE(std::isnan(at(3, 0)));
  EXPECT_TRUE(std::isfinite(at(3, 16)));  // Another head.
  EXPECT_TRUE(std::isnan(at(4, 16)));
  EXPECT_TRUE(std::isfinite(at(4, 0)));
  for (int64_t row = 0; row < 20; ++row) EXPECT_TRUE(std::isnan(at(row, 5))) << row;
  EXPECT_TRUE(std::isfinite(at(0, 6)));
  EXPECT_TRUE(std::isinf(at(0, 7)));
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, BFloat16Test, ::testing::ValuesIn(Isas()), NameOfIsa);

}  // namespace
}  // namespace ditserve
