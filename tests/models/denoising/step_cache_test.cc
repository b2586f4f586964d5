#include "models/denoising/step_cache.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/base/error_details.h"
#include "tests/models/recorded.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kTokens = 5, kWidth = 64;
const std::vector<int64_t> kShape = {1, kTokens, kWidth};

StepCacheOptions OptionsOf(const nlohmann::json& description) {
  StepCacheOptions options;
  options.rule = description["rule"] == "teacache" ? StepCacheRule::kTeaCache : StepCacheRule::kFirstBlock;
  options.threshold = description["threshold"].get<double>();
  return options;
}

StepCache Make(const StepCacheOptions& options, at::ScalarType dtype = at::kFloat) {
  return StepCache(options, kTokens, kWidth, at::TensorOptions().dtype(dtype));
}

bool Reuses(StepCache& cache, const at::Tensor& signal) {
  const bool reuses = cache.Reuses(signal, cache.Compare(signal));
  EXPECT_EQ(cache.reused(), reuses);
  return reuses;
}

at::Tensor MadeUp(const std::string& name, const nlohmann::json& description) {
  return Seeded(0, name, kShape).to(DTypeOf(description));
}

// What a step cache compares, as scripts/parity/record_denoising.py makes it.
at::Tensor SignalOf(size_t step, const nlohmann::json& description) {
  const float drift = description["drifts"][step].get<float>();
  return Seeded(0, "signal", kShape).add(Seeded(0, "change", kShape).mul(drift)).to(DTypeOf(description));
}

TEST(StepCacheTest, FirstBlockCacheReusesWhatDiffusersReuses) {
  const c10::InferenceMode no_autograd;
  const Recorded recorded(DITSERVE_DENOISING_FILE);
  const auto cases = recorded.Cases("cache.first_block.");
  EXPECT_EQ(cases.size(), 6u);
  for (const auto& [name, description] : cases) {
    StepCache cache = Make(OptionsOf(description), DTypeOf(description));
    std::vector<at::Tensor> outputs;
    for (size_t step = 0; step < description["drifts"].size(); ++step) {
      const at::Tensor x = MadeUp("x." + std::to_string(step), description);
      const at::Tensor first = x.add(SignalOf(step, description));
      const bool reuses = Reuses(cache, first.sub(x)[0]);
      EXPECT_EQ(reuses, description["reused"][step].get<bool>()) << name << ", step " << step;
      at::Tensor output;
      if (reuses) {
        output = cache.residual().add(first);
      } else {
        output = first.add(MadeUp("rest." + std::to_string(step), description));
        cache.Begin(first[0]);
        cache.Keep(output[0]);
      }
      outputs.push_back(output);
    }
    EXPECT_TRUE(at::equal(at::cat(outputs), recorded.Read(name + ".outputs"))) << name;
  }
}

TEST(StepCacheTest, TeaCacheReusesWhatVllmOmniReuses) {
  const c10::InferenceMode no_autograd;
  const Recorded recorded(DITSERVE_DENOISING_FILE);
  const auto cases = recorded.Cases("cache.teacache.");
  EXPECT_EQ(cases.size(), 6u);
  for (const auto& [name, description] : cases) {
    StepCache cache = Make(OptionsOf(description), DTypeOf(description));
    for (size_t step = 0; step < description["drifts"].size(); ++step) {
      EXPECT_EQ(Reuses(cache, SignalOf(step, description)[0]), description["reused"][step].get<bool>())
          << name << ", step " << step;
    }
  }
}

// diffusers finds that NaN is not more than the threshold, vLLM-Omni divides by a little more.
TEST(StepCacheTest, ReusesWhereSignalsAreNothing) {
  for (const StepCacheRule rule : {StepCacheRule::kFirstBlock, StepCacheRule::kTeaCache}) {
    StepCache cache = Make({.rule = rule});
    EXPECT_FALSE(Reuses(cache, at::zeros({kTokens, kWidth})));
    EXPECT_TRUE(Reuses(cache, at::zeros({kTokens, kWidth})));
  }
}

TEST(StepCacheTest, WhatHasNoValuesIsComputed) {
  StepCache cache(StepCacheOptions{}, kTokens, kWidth, at::TensorOptions().device(at::kMeta));
  const at::Tensor signal = at::zeros({kTokens, kWidth}, at::TensorOptions().device(at::kMeta));
  for (int step = 0; step < 2; ++step) EXPECT_FALSE(Reuses(cache, signal));
}

TEST(StepCacheTest, NamesTheOptionThatIsWrong) {
  const auto expect = [](const StepCacheOptions& options, const std::string& field) {
    const absl::Status status = CheckStepCache(options);
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, "expected"));
    EXPECT_EQ(FieldOf(status), field);
  };
  EXPECT_THAT(CheckStepCache({}), IsOk());
  StepCacheOptions options;
  for (const double threshold : {0.0, -0.1, kNaN, std::numeric_limits<double>::infinity()}) {
    options.threshold = threshold;
    expect(options, "threshold");
  }
  options = {};
  options.polynomial[4] = kNaN;
  expect(options, "polynomial");
}

}  // namespace
}  // namespace ditserve
