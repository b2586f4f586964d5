#include "models/denoising/guidance.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <limits>

#include "core/base/error_details.h"
#include "tests/models/recorded.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

// (That results are those of both pipelines is in flow_step_test.cc.)
TEST(GuidanceTest, DiffusersRuleKeepsTheLengthOfEachToken) {
  const c10::InferenceMode no_autograd;
  const at::Tensor positive = Seeded(0, "cond", {2, 15, 64}), negative = Seeded(0, "uncond", {2, 15, 64});
  const auto lengths = [](const at::Tensor& x) { return at::linalg_vector_norm(x, 2, at::IntArrayRef{-1}); };
  const at::Tensor rescaled = Guided(Numerics::kDiffusers, positive, negative, 4);
  const at::Tensor plain = Guided(Numerics::kDiffSynth, positive, negative, 4);
  EXPECT_LE(lengths(rescaled).div(lengths(positive)).sub(1).abs().max().item<double>(), 1e-6);
  EXPECT_GT(lengths(plain).div(lengths(positive)).min().item<double>(), 2);
  EXPECT_TRUE(at::equal(plain, negative.add(positive.sub(negative).mul(4))));
}

TEST(GuidanceTest, IsOffWhereTheReferencesRunTheModelOnce) {
  const auto guided = [](Numerics numerics, double scale, bool negative = true) {
    return *IsGuided(numerics, scale, negative);
  };
  EXPECT_TRUE(guided(Numerics::kDiffusers, 1.5));
  EXPECT_FALSE(guided(Numerics::kDiffusers, 1));
  EXPECT_FALSE(guided(Numerics::kDiffusers, 0.5));
  EXPECT_FALSE(guided(Numerics::kDiffusers, 4, false));
  EXPECT_TRUE(guided(Numerics::kDiffSynth, 0.5));
  EXPECT_FALSE(guided(Numerics::kDiffSynth, 1));
  EXPECT_FALSE(guided(Numerics::kDiffSynth, 4, false));
}

TEST(GuidanceTest, AScaleIsFinite) {
  for (const double scale : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const auto guided = IsGuided(Numerics::kDiffusers, scale, true);
    EXPECT_THAT(guided, StatusIs(absl::StatusCode::kInvalidArgument, "expected a finite number"));
    EXPECT_EQ(FieldOf(guided.status()), "true_cfg_scale");
  }
}

}  // namespace
}  // namespace ditserve
