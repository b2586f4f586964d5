// Denoising loops that go on from what there was after a step: they end with the bits of one that was not interrupted.
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <map>

#include "tests/server/engine/denoise_fixture.h"

namespace ditserve {
namespace {

enum class Begins : uint8_t { kNoise, kImage, kMaskedImage };

class DenoiseResumeTest : public DenoiseTest {
 protected:
  // Models "tiny", of DiffSynth-Studio's numerics, and "diffusers", whose mask needs the noise again after each step.
  std::unique_ptr<LocalEngine> MakeBoth() {
    auto engine = MakeKeeping(1 << 20);
    EXPECT_THAT(engine->LoadModel({"diffusers", folder_ / "model", Numerics::kDiffusers}), IsOk());
    return engine;
  }

  // Guided, of two pictures, each of a seed of its own.
  ForwardCall LoopOf(Begins begins, Numerics numerics, at::ScalarType dtype) const {
    ForwardCall call = Loop(5, 4.0, "disk", 2);
    if (numerics == Numerics::kDiffusers) call.model = "diffusers";
    Denoising& what = *call.denoising;
    FlowScheduleOptions options;
    options.numerics = numerics;
    options.steps = 5;
    options.strength = begins == Begins::kNoise ? 1.0 : 0.8;
    what.schedule = *MakeFlowSchedule(options, (kSide / 16) * (kSide / 16));
    what.latents_every = 1;
    what.seeds = {7, 8};
    what.start = begins == Begins::kNoise ? LoopStart::kNoise : LoopStart::kImage;
    if (begins != Begins::kNoise) what.image = at::full({1, 16, kSide / 8, kSide / 8}, 0.5, dtype);
    if (begins == Begins::kMaskedImage) {
      what.mask = at::zeros({1, 1, kSide / 8, kSide / 8}, dtype);
      what.mask.narrow(3, 0, kSide / 16).fill_(1);
    }
    // Of which shape and dtype alone count.
    return BeginningAt(std::move(call), 0, at::zeros({2, 16, kSide / 8, kSide / 8}, dtype));
  }

  static ForwardCall BeginningAt(ForwardCall call, int64_t step, const at::Tensor& latents) {
    call.denoising->first_step = step;
    call.inputs.latents = latents;
    const at::Tensor timesteps = LoopTimesteps(*call.denoising, latents.scalar_type());
    call.inputs.timestep = timesteps.narrow(0, 0, 1).expand({latents.size(0)}).contiguous();
    return call;
  }

  static ForwardCall Rest(ForwardCall whole, int64_t done, const at::Tensor& latents) {
    whole.denoising->start = LoopStart::kLatents;
    return BeginningAt(std::move(whole), done, latents);
  }

  static std::map<int64_t, at::Tensor> AfterEachStep(Engine& engine, const ForwardCall& call) {
    std::map<int64_t, at::Tensor> after;
    const auto flight = Send(engine, call, [&](const ForwardProgress& progress) {
      if (progress.latents.defined()) after[progress.latents_after] = progress.latents;
    });
    EXPECT_THAT(flight->Wait(), IsOk());
    return after;
  }
};

TEST_F(DenoiseResumeTest, InAnyDTypeOfNoiseAnImageOrAMaskTheRestHasTheBitsOfTheWhole) {
  const auto engine = MakeBoth();
  for (const Numerics numerics : {Numerics::kDiffSynth, Numerics::kDiffusers}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const Begins begins : {Begins::kNoise, Begins::kImage, Begins::kMaskedImage}) {
        const ForwardCall whole = LoopOf(begins, numerics, dtype);
        const int64_t steps = whole.denoising->schedule.steps();
        const std::map<int64_t, at::Tensor> after = AfterEachStep(*engine, whole);
        ASSERT_EQ(static_cast<int64_t>(after.size()), steps);
        EXPECT_EQ(after.at(steps).scalar_type(), dtype);
        for (const int64_t done : {int64_t{1}, steps - 1}) {
          EXPECT_TRUE(at::equal(Output(*engine, Rest(whole, done, after.at(done))), after.at(steps)))
              << Name(numerics) << ", " << dtype << ", " << static_cast<int>(begins) << ", after " << done;
        }
      }
    }
  }
}

// So that the bits above are no chance: the noise of other seeds is seen where the mask puts it back.
TEST_F(DenoiseResumeTest, TheRestOfAMaskedLoopOfOtherSeedsEndsOtherwise) {
  const auto engine = MakeBoth();
  const ForwardCall whole = LoopOf(Begins::kMaskedImage, Numerics::kDiffusers, at::kFloat);
  const std::map<int64_t, at::Tensor> after = AfterEachStep(*engine, whole);
  ForwardCall rest = Rest(whole, 1, after.at(1));
  EXPECT_TRUE(at::equal(Output(*engine, rest), after.at(whole.denoising->schedule.steps())));
  rest.denoising->seeds = {7, 9};
  EXPECT_FALSE(at::equal(Output(*engine, rest), after.at(whole.denoising->schedule.steps())));
}

}  // namespace
}  // namespace ditserve
