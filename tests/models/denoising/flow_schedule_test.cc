#include "models/denoising/flow_schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/base/error_details.h"
#include "tests/models/recorded.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

constexpr int64_t kTokens = 4096;  // 1024 x 1024 pixels.
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

FlowScheduleOptions OptionsOf(const nlohmann::json& description) {
  FlowScheduleOptions options;
  options.numerics = *NumericsFromName(description["numerics"].get<std::string>());
  if (description.contains("steps")) options.steps = description["steps"].get<int64_t>();
  options.sigmas = description["sigmas"].get<std::vector<double>>();
  options.dynamic_shift.reset();
  if (const auto& shift = description["dynamic_shift"]; !shift.is_null()) {
    options.dynamic_shift = {shift["base_shift"].get<double>(), shift["max_shift"].get<double>(),
                             shift["base_image_seq_len"].get<int64_t>(), shift["max_image_seq_len"].get<int64_t>()};
  }
  options.shift = description["shift"].get<double>();
  options.shift_terminal.reset();
  if (const auto& terminal = description["shift_terminal"]; !terminal.is_null()) options.shift_terminal = terminal;
  options.strength = description["strength"].get<double>();
  return options;
}

std::vector<float> Values(const at::Tensor& tensor) {
  return {tensor.data_ptr<float>(), tensor.data_ptr<float>() + tensor.numel()};
}

void ExpectError(const FlowScheduleOptions& options, const std::string& field, const std::string& part,
                 int64_t image_tokens = kTokens) {
  const auto schedule = MakeFlowSchedule(options, image_tokens);
  EXPECT_THAT(schedule, StatusIs(absl::StatusCode::kInvalidArgument, part));
  EXPECT_EQ(FieldOf(schedule.status()), field);
}

TEST(FlowScheduleTest, HasTheBitsOfDiffusers) {
  const Recorded recorded(DITSERVE_DENOISING_FILE);
  const auto cases = recorded.Cases("schedule.diffusers.");
  EXPECT_EQ(cases.size(), 75u);
  for (const auto& [name, description] : cases) {
    const auto schedule = MakeFlowSchedule(OptionsOf(description), description["tokens"].get<int64_t>());
    ASSERT_THAT(schedule, IsOk()) << description;
    EXPECT_EQ(schedule->sigmas, Values(recorded.Read(name + ".sigmas"))) << description;
    EXPECT_EQ(schedule->timesteps, Values(recorded.Read(name + ".timesteps"))) << description;
  }
}

// torch.linspace rounds differently on different processors.
TEST(FlowScheduleTest, IsThatOfDiffSynthButForRoundings) {
  const Recorded recorded(DITSERVE_DENOISING_FILE);
  const auto cases = recorded.Cases("schedule.diffsynth.");
  EXPECT_EQ(cases.size(), 11u);
  for (const auto& [name, description] : cases) {
    const auto schedule = MakeFlowSchedule(OptionsOf(description), description["tokens"].get<int64_t>());
    ASSERT_THAT(schedule, IsOk()) << description;
    const std::vector<float> sigmas = Values(recorded.Read(name + ".sigmas"));
    const std::vector<float> timesteps = Values(recorded.Read(name + ".timesteps"));
    ASSERT_EQ(schedule->steps(), static_cast<int64_t>(sigmas.size())) << description;
    for (size_t i = 0; i < sigmas.size(); ++i) {
      EXPECT_NEAR(schedule->sigmas[i], sigmas[i], std::ldexp(1.0, -22)) << description;
      EXPECT_NEAR(schedule->timesteps[i], timesteps[i], std::ldexp(1000.0, -22)) << description;
    }
    EXPECT_EQ(schedule->sigmas.back(), 0) << description;
  }
}

TEST(FlowScheduleTest, GivesThePublishedValues) {
  const auto expect = [](const FlowScheduleOptions& options, const std::vector<double>& expected) {
    const FlowSchedule schedule = *MakeFlowSchedule(options, kTokens);
    ASSERT_EQ(schedule.sigmas.size(), expected.size() + 1);
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(schedule.sigmas[i], expected[i], 1e-6) << i;
  };
  FlowScheduleOptions qwen_image;
  qwen_image.steps = 4;
  expect(qwen_image, {1, 0.766709, 0.455614, 0.02});
  qwen_image.steps = 8;
  expect(qwen_image, {1, 0.916024, 0.820046, 0.709295, 0.580075, 0.427347, 0.244054, 0.02});
  FlowScheduleOptions lightning;
  lightning.dynamic_shift->base_shift = lightning.dynamic_shift->max_shift = std::log(3.0);
  lightning.shift_terminal.reset();
  lightning.steps = 4;
  expect(lightning, {1, 0.9, 0.75, 0.5});
  lightning.steps = 8;
  expect(lightning, {1, 0.954545, 0.9, 0.833333, 0.75, 0.642857, 0.5, 0.3});

  const FlowSchedule fifty = *MakeFlowSchedule({}, kTokens);
  EXPECT_NEAR(fifty.sigmas[1], 0.989701, 1e-6);
  EXPECT_NEAR(fifty.sigmas[2], 0.979192, 1e-6);
  EXPECT_NEAR(fifty.sigmas[47], 0.095499, 1e-6);
  EXPECT_NEAR(fifty.sigmas[48], 0.058476, 1e-6);
  EXPECT_NEAR(fifty.sigmas[49], 0.02, 1e-6);
}

TEST(FlowScheduleTest, StrengthSkipsDiffusersFirstSteps) {
  FlowScheduleOptions options;
  options.strength = 0.6;
  const FlowSchedule all = *MakeFlowSchedule({}, kTokens), some = *MakeFlowSchedule(options, kTokens);
  EXPECT_EQ(some.skipped_steps, 20);
  EXPECT_EQ(some.sigmas, std::vector<float>(all.sigmas.begin() + 20, all.sigmas.end()));
  EXPECT_EQ(some.timesteps, std::vector<float>(all.timesteps.begin() + 20, all.timesteps.end()));
}

TEST(FlowScheduleTest, StrengthIsWhereDiffSynthsStepsBegin) {
  FlowScheduleOptions options;
  options.numerics = Numerics::kDiffSynth;
  options.strength = 0.6;
  const FlowSchedule schedule = *MakeFlowSchedule(options, kTokens);
  EXPECT_EQ(schedule.skipped_steps, 0);
  EXPECT_EQ(schedule.steps(), 50);
  EXPECT_LT(schedule.sigmas[0], 0.8);
}

TEST(FlowScheduleTest, NamesTheOptionThatIsWrong) {
  const auto with = [](auto change) {
    FlowScheduleOptions options;
    change(options);
    return options;
  };
  for (const int64_t steps : {int64_t{-1}, int64_t{0}, int64_t{1001}}) {
    ExpectError(with([&](auto& options) { options.steps = steps; }), "steps", "expected 1 to 1000");
  }
  for (const double strength : {-0.1, 0.0, 1.01, kNaN}) {
    ExpectError(with([&](auto& options) { options.strength = strength; }), "strength",
                "expected more than 0, at most 1");
  }
  ExpectError(with([&](auto& options) { options.strength = 1e-20; }), "strength", "leaves none of 50 steps");
  for (const double shift : {0.0, -3.0, 1001.0, kNaN}) {
    ExpectError(with([&](auto& options) { options.shift = shift; }), "shift", "expected more than 0, at most 1000");
  }
  for (const double terminal : {0.0, 1.0, -0.02, kNaN}) {
    ExpectError(with([&](auto& options) { options.shift_terminal = terminal; }), "shift_terminal",
                "expected more than 0 and less than 1");
  }
  for (const double shift : {21.0, -21.0, kNaN}) {
    ExpectError(with([&](auto& options) { options.dynamic_shift->base_shift = shift; }), "dynamic_shift.base_shift",
                "expected -20 to 20");
    ExpectError(with([&](auto& options) { options.dynamic_shift->max_shift = shift; }), "dynamic_shift.max_shift",
                "expected -20 to 20");
  }
  ExpectError(with([&](auto& options) { options.dynamic_shift->base_image_seq_len = -1; }),
              "dynamic_shift.base_image_seq_len", "-1, expected 0 or more");
  ExpectError(with([&](auto& options) { options.dynamic_shift->max_image_seq_len = 256; }),
              "dynamic_shift.max_image_seq_len", "256, expected more than base_image_seq_len, 256");
  ExpectError({}, "image_tokens", "0, expected 1 or more", 0);
}

TEST(FlowScheduleTest, NamesTheSigmaThatIsWrong) {
  const auto sigmas = [](std::vector<double> values) {
    FlowScheduleOptions options;
    options.sigmas = std::move(values);
    return options;
  };
  ExpectError(sigmas({1.1, 0.5}), "sigmas[0]", "1.1, expected more than 0 and at most 1");
  ExpectError(sigmas({1.0, 0.5, 0.5}), "sigmas[2]", "0.5, expected more than 0 and less than the one before, 0.5");
  ExpectError(sigmas({1.0, 0.0}), "sigmas[1]", "0, expected more than 0");
  ExpectError(sigmas({1.0, kNaN}), "sigmas[1]", "nan");
  ExpectError(sigmas(std::vector<double>(1001, 0.5)), "sigmas", "1001 values, expected at most 1000");
  // Equal once they are float32.
  ExpectError(sigmas({0.5, 0.5 - 1e-12}), "sigmas", "do not fall: step 1");
}

TEST(FlowScheduleTest, RefusesWhatHasNoSchedule) {
  FlowScheduleOptions one_step;  // diffusers divides 0 by 0.
  one_step.steps = 1;
  ExpectError(one_step, "shift_terminal", "expected none where the last step begins at sigma 1");

  FlowScheduleOptions steep;
  steep.dynamic_shift->max_shift = 20;
  ExpectError(steep, "dynamic_shift", "tokens, expected -20 to 20", 16384);
  steep.dynamic_shift->base_shift = 20;
  steep.shift_terminal.reset();
  ExpectError(steep, "steps", "do not fall: step 1 would be at sigma 1");

  FlowScheduleOptions both;
  both.numerics = Numerics::kDiffSynth;
  both.sigmas = {0.8, 0.4};
  both.strength = 0.8;
  ExpectError(both, "strength", "expected 1 beside sigmas");
}

}  // namespace
}  // namespace ditserve
