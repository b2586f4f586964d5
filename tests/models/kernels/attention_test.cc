#include "models/kernels/attention.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "models/seeded_values.h"
#include "tests/models/kernels/isa_name.h"

namespace ditserve {
namespace {

// Attention of seeded values, with gaps between the rows of each matrix.
class Case {
 public:
  Case(int64_t queries, int64_t keys, int64_t heads, int64_t head_dim, float spread = 1)
      : queries_(queries), keys_(keys), heads_(heads), dim_(head_dim) {
    Fill("q", queries * (width() + 1), spread, q_);
    Fill("k", keys * (width() + 2), spread, k_);
    Fill("v", keys * (width() + 3), 1, v_);
  }

  int64_t width() const { return heads_ * dim_; }
  float& Q(int64_t row, int64_t column) { return q_[static_cast<size_t>(row * (width() + 1) + column)]; }
  float& K(int64_t row, int64_t column) { return k_[static_cast<size_t>(row * (width() + 2) + column)]; }
  float& V(int64_t row, int64_t column) { return v_[static_cast<size_t>(row * (width() + 3) + column)]; }

  // The rows of the result for queries [begin, end), without gaps. What is in the gaps must stay.
  std::vector<float> Compute(Isa isa, int64_t begin, int64_t end) const {
    constexpr float kGap = 12345;
    const int64_t stride = width() + 5;
    std::vector<float> out(static_cast<size_t>((end - begin) * stride), kGap);
    AttendFloat32({{q_.data() + begin * (width() + 1), width() + 1, end - begin},
                   {k_.data(), width() + 2, keys_},
                   {v_.data(), width() + 3, keys_},
                   heads_,
                   dim_},
                  out.data(), stride, isa);
    std::vector<float> dense;
    for (int64_t r = 0; r < end - begin; ++r) {
      const auto row = out.begin() + r * stride;
      dense.insert(dense.end(), row, row + width());
      for (int64_t c = width(); c < stride; ++c) EXPECT_EQ(row[c], kGap);
    }
    return dense;
  }
  std::vector<float> Compute(Isa isa) const { return Compute(isa, 0, queries_); }

  // By the definition, in double.
  std::vector<double> Expected() const {
    std::vector<double> out;
    for (int64_t q = 0; q < queries_; ++q) {
      for (int64_t h = 0; h < heads_; ++h) {
        std::vector<double> weights;
        double largest = -std::numeric_limits<double>::infinity(), total = 0;
        for (int64_t k = 0; k < keys_; ++k) {
          double score = 0;
          for (int64_t d = h * dim_; d < (h + 1) * dim_; ++d) {
            score += static_cast<double>(q_[static_cast<size_t>(q * (width() + 1) + d)]) *
                     k_[static_cast<size_t>(k * (width() + 2) + d)];
          }
          weights.push_back(score / std::sqrt(static_cast<double>(dim_)));
          largest = std::max(largest, weights.back());
        }
        for (double& weight : weights) total += weight = std::exp(weight - largest);
        for (int64_t d = h * dim_; d < (h + 1) * dim_; ++d) {
          double sum = 0;
          for (int64_t k = 0; k < keys_; ++k) {
            sum += weights[static_cast<size_t>(k)] * v_[static_cast<size_t>(k * (width() + 3) + d)];
          }
          out.push_back(sum / total);
        }
      }
    }
    return out;
  }

  void ExpectIsRight(Isa isa, double tolerance = 2e-6) const {
    const std::vector<float> found = Compute(isa);
    const std::vector<double> expected = Expected();
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], tolerance) << i;
  }

 private:
  static void Fill(const std::string& name, int64_t count, float spread, std::vector<float>& values) {
    values.resize(static_cast<size_t>(count));
    FillSeeded(5, name, 0, count, 0.0f, spread, values.data());
  }

  const int64_t queries_, keys_, heads_, dim_;
  std::vector<float> q_, k_, v_;
};

class AttentionTest : public ::testing::TestWithParam<Isa> {};

TEST_P(AttentionTest, IsRightForEveryNumberOfTokens) {
  for (const int64_t tokens : {1, 2, 5, 6, 7, 15, 16, 17, 33, 251, 252, 253, 505}) {
    SCOPED_TRACE(tokens);
    Case(tokens, tokens, 2, 24).ExpectIsRight(GetParam());
  }
}

TEST_P(AttentionTest, IsRightForEveryHeadDimension) {
  for (const int64_t head_dim :
       {int64_t{1}, int64_t{6}, int64_t{11}, int64_t{12}, int64_t{128}, int64_t{130}, kMaxHeadDim}) {
    SCOPED_TRACE(head_dim);
    Case(20, 260, 3, head_dim).ExpectIsRight(GetParam());
  }
}

TEST_P(AttentionTest, IsRightForMoreQueriesThanAPartHas) { Case(1100, 30, 1, 8).ExpectIsRight(GetParam()); }

// Weights from 1 down to what underflows, and maxima that grow from one block of keys to the next.
TEST_P(AttentionTest, IsRightForScoresFarApart) {
  Case wide(40, 600, 1, 16, /*spread=*/30);
  for (int64_t k = 0; k < 600; ++k) {
    for (int64_t d = 0; d < 16; ++d) wide.K(k, d) *= static_cast<float>(k) / 300;
  }
  wide.ExpectIsRight(GetParam(), 1e-3);
}

TEST_P(AttentionTest, ARowDoesNotDependOnTheOthers) {
  const Case full(1100, 300, 2, 16);
  const std::vector<float> all = full.Compute(GetParam());
  for (const auto& [begin, end] : {std::tuple(0, 1), std::tuple(3, 40), std::tuple(500, 1100)}) {
    const std::vector<float> some = full.Compute(GetParam(), begin, end);
    EXPECT_EQ(std::memcmp(some.data(), all.data() + begin * full.width(), some.size() * sizeof(float)), 0) << begin;
  }
}

TEST_P(AttentionTest, DoesNotDependOnTheNumberOfThreads) {
  const int threads = at::get_num_threads();
  const Case some(1100, 300, 2, 16);
  at::set_num_threads(1);
  const std::vector<float> alone = some.Compute(GetParam());
  for (const int team : {2, 3, 8}) {
    at::set_num_threads(team);
    EXPECT_EQ(some.Compute(GetParam()), alone) << team << " threads";
  }
  at::set_num_threads(threads);
}

TEST_P(AttentionTest, PassesOnWhatIsNotFinite) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
  Case some(20, 20, 2, 16);
  some.Q(3, 0) = kNan;
  some.Q(4, 16) = kInfinity;
  some.V(7, 5) = kNan;
  const std::vector<float> out = some.Compute(GetParam());
  const auto at = [&](int64_t row, int64_t column) { return out[static_cast<size_t>(row * 32 + column)]; };
  EXPECT_TRUE(std::isnan(at(3, 0)));
  EXPECT_TRUE(std::isfinite(at(3, 16)));  // Another head.
  EXPECT_TRUE(std::isnan(at(4, 16)));
  EXPECT_TRUE(std::isfinite(at(4, 0)));
  for (int64_t row = 0; row < 20; ++row) EXPECT_TRUE(std::isnan(at(row, 5))) << row;
  EXPECT_TRUE(std::isfinite(at(0, 6)));
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, AttentionTest, ::testing::ValuesIn(Isas()), NameOfIsa);

}  // namespace
}  // namespace ditserve
