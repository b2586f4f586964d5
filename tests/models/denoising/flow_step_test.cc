#include "models/denoising/flow_step.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "core/base/error_details.h"
#include "models/denoising/guidance.h"
#include "models/denoising/noise.h"
#include "models/qwen_image_dit.h"
#include "tests/models/recorded.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

constexpr float kSigma = 0.625f;

// A pipeline's loop with a made-up model, as scripts/parity/record_denoising.py runs the pipelines themselves.
class Loop {
 public:
  explicit Loop(const nlohmann::json& description)
      : numerics_(*NumericsFromName(description["numerics"].get<std::string>())),
        kind_(description["kind"].get<std::string>()),
        dtype_(DTypeOf(description)),
        batch_(description["batch"].get<int64_t>()),
        height_(description["height"].get<int64_t>()),
        width_(description["width"].get<int64_t>()),
        scale_(description["scale"].get<double>()) {
    FlowScheduleOptions options;
    options.numerics = numerics_;
    options.steps = description["steps"].get<int64_t>();
    options.strength = description["strength"].get<double>();
    schedule_ = *MakeFlowSchedule(options, height_ / 16 * (width_ / 16));
    noise_ = *SeededNoise(description["seeds"].get<std::vector<uint64_t>>(), batch_, 16, height_, width_, dtype_);
  }

  // Of processors that round them in other ways than this one.
  void TakeSigmas(const at::Tensor& sigmas) {
    ASSERT_EQ(sigmas.numel(), schedule_.steps());
    for (size_t i = 0; i < schedule_.timesteps.size(); ++i) {
      schedule_.sigmas[i] = sigmas.const_data_ptr<float>()[i];
      schedule_.timesteps[i] = 1000 * schedule_.sigmas[i];
    }
  }

  // The latents before each step and after the last. `mask`: for inpainting.
  std::vector<at::Tensor> Run(const at::Tensor& mask) const {
    const at::Tensor image = Seeded(0, "image", noise_.sizes()).to(dtype_);
    const Inpainting inpainting{image, noise_, mask};
    std::vector<at::Tensor> latents = {kind_ == "text" ? noise_
                                                       : NoisedImage(numerics_, image, noise_, schedule_.sigmas[0])};
    for (int64_t i = 0; i < schedule_.steps(); ++i) {
      const Inpainting* const inpaints = kind_ == "inpaint" ? &inpainting : nullptr;
      latents.push_back(FlowStep(numerics_, schedule_, i, latents.back(), Velocity(i), inpaints));
    }
    return latents;
  }

  // Of pixels that are made anew and others that are not.
  at::Tensor Mask() const { return Seeded(0, "mask", {1, 1, noise_.size(2), noise_.size(3)}).gt(0).to(dtype_); }

  at::Tensor Timesteps() const {
    std::vector<at::Tensor> timesteps;
    for (const float timestep : schedule_.timesteps) timesteps.push_back(ModelTimestep(timestep, 1, dtype_));
    return at::cat(timesteps);
  }

  at::Tensor LatentsOf(const at::Tensor& packed) const { return Unpatchify(packed, {}, height_, width_); }

 private:
  at::Tensor Velocity(int64_t step) const {
    const at::Tensor positive = Prediction("cond", step);
    const at::Tensor guided =
        *IsGuided(numerics_, scale_, true) ? Guided(numerics_, positive, Prediction("uncond", step), scale_) : positive;
    return numerics_ == Numerics::kDiffusers ? LatentsOf(guided) : guided;
  }
  // Packed, as the model's are, for diffusers.
  at::Tensor Prediction(const std::string& branch, int64_t step) const {
    const std::vector<int64_t> packed = {batch_, height_ / 16 * (width_ / 16), 64};
    const at::IntArrayRef shape = numerics_ == Numerics::kDiffusers ? at::IntArrayRef(packed) : noise_.sizes();
    return Seeded(0, branch + "." + std::to_string(step), shape).to(dtype_);
  }

  const Numerics numerics_;
  const std::string kind_;
  const at::ScalarType dtype_;
  const int64_t batch_, height_, width_;
  const double scale_;
  FlowSchedule schedule_;
  at::Tensor noise_;
};

// To the bit, but where sums of squares went in, which processors add up in different orders, or other noise.
void ExpectEqual(const at::Tensor& latents, const at::Tensor& expected, const nlohmann::json& description) {
  EXPECT_EQ(latents.scalar_type(), expected.scalar_type());
  const bool rescaled = description["numerics"] == "diffusers" && description["scale"].get<double>() > 1;
  if (rescaled || !DrawsRecordedNoise()) {
    EXPECT_LE(latents.sub(expected).abs().max().item<double>(), ToleranceOf(DTypeOf(description))) << description;
  } else {
    EXPECT_TRUE(at::equal(latents, expected)) << description;
  }
}

TEST(FlowStepTest, LoopsAreThoseOfDiffusers) {
  const c10::InferenceMode no_autograd;
  const Recorded recorded(DITSERVE_DENOISING_FILE);
  const auto cases = recorded.Cases("loop.diffusers.");
  EXPECT_EQ(cases.size(), 9u);
  for (const auto& [name, description] : cases) {
    const Loop loop(description);
    const at::Tensor expected = recorded.Read(name + ".packed");
    const std::vector<at::Tensor> latents = loop.Run(loop.Mask());
    ASSERT_EQ(static_cast<int64_t>(latents.size()), expected.size(0)) << description;
    for (size_t i = 0; i < latents.size(); ++i) {
      ExpectEqual(latents[i], loop.LatentsOf(expected[static_cast<int64_t>(i)]), description);
    }
    EXPECT_TRUE(at::equal(loop.Timesteps(), recorded.Read(name + ".timesteps"))) << description;
  }
}

TEST(FlowStepTest, LoopsAreThoseOfDiffSynth) {
  const c10::InferenceMode no_autograd;
  const Recorded recorded(DITSERVE_DENOISING_FILE);
  const auto cases = recorded.Cases("loop.diffsynth.");
  EXPECT_EQ(cases.size(), 6u);
  for (const auto& [name, description] : cases) {
    Loop loop(description);
    loop.TakeSigmas(recorded.Read(name + ".sigmas"));
    const at::Tensor mask = description["kind"] == "inpaint" ? recorded.Read(name + ".mask") : at::Tensor();
    ExpectEqual(at::stack(loop.Run(mask)), recorded.Read(name + ".latents"), description);
    EXPECT_TRUE(at::equal(loop.Timesteps(), recorded.Read(name + ".timesteps"))) << description;
  }
}

TEST(FlowStepTest, InputsStayAsTheyAre) {
  const c10::InferenceMode no_autograd;
  const FlowSchedule schedule = *MakeFlowSchedule({}, 6);
  const auto x = [](const char* name) { return Seeded(0, name, {1, 16, 4, 6}); };
  const at::Tensor latents = x("x"), velocity = x("v");
  const Inpainting inpainting{x("image"), x("noise"), at::full({1, 1, 4, 6}, 0.25)};
  for (const Numerics numerics : {Numerics::kDiffusers, Numerics::kDiffSynth}) {
    NoisedImage(numerics, inpainting.image, inpainting.noise, kSigma);
    FlowStep(numerics, schedule, 3, latents, velocity, &inpainting);
    EXPECT_TRUE(at::equal(latents, x("x")) && at::equal(velocity, x("v")));
    EXPECT_TRUE(at::equal(inpainting.image, x("image")) && at::equal(inpainting.noise, x("noise")));
  }
}

}  // namespace
}  // namespace ditserve
