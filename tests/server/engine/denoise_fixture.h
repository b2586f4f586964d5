#ifndef DITSERVE_TESTS_SERVER_ENGINE_DENOISE_FIXTURE_H_
#define DITSERVE_TESTS_SERVER_ENGINE_DENOISE_FIXTURE_H_

#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "models/denoising/noise.h"
#include "server/engine/denoise_loop.h"
#include "tests/server/engine/local_engine_fixture.h"

namespace ditserve {

// Denoising loops, and what they are expected to give and to move.
class DenoiseTest : public LocalEngineTest {
 protected:
  static constexpr int64_t kSide = 64;

  // Of `batch` pictures; guided if there is a scale.
  ForwardCall Loop(int64_t steps, std::optional<double> guidance, const char* profile = "disk",
                   int64_t batch = 1) const {
    ForwardCall call = MakeCall(ProfileNamed(profile), kSide, kSide);
    FlowScheduleOptions options;
    options.numerics = Numerics::kDiffSynth;
    options.steps = steps;
    call.denoising.emplace();
    call.denoising->schedule = *MakeFlowSchedule(options, (kSide / 16) * (kSide / 16));
    call.inputs.latents = *SeededNoise({7}, batch, 16, kSide, kSide, at::kFloat);
    call.inputs.timestep = LoopTimesteps(*call.denoising, at::kFloat).narrow(0, 0, 1).expand({batch}).contiguous();
    // Prompts of different lengths.
    const at::Tensor prompts = SeededPrompts(2 * batch);
    const at::Tensor masks = at::ones({2 * batch, 9}, at::kBool);
    for (int64_t i = 0; i < 2 * batch; ++i) masks[i].narrow(0, 9 - i % 4, i % 4).fill_(false);
    call.inputs.prompt_emb = prompts.narrow(0, 0, batch);
    call.inputs.prompt_emb_mask = masks.narrow(0, 0, batch);
    if (!guidance) return call;
    // The longest of which is shorter than the prompts.
    call.denoising->guidance = {*guidance, prompts.narrow(0, batch, batch).narrow(1, 0, 8),
                                masks.narrow(0, batch, batch).narrow(1, 0, 8)};
    return call;
  }
  static at::Tensor SeededPrompts(int64_t items) {
    at::manual_seed(3);
    return at::randn({items, 9, 64});
  }

  // The same loop, whose passes are requests of one image and one prompt each.
  class SinglePasses final : public Laps {
   public:
    SinglePasses(Engine& engine, ForwardCall call) : engine_(engine), call_(std::move(call)) {
      call_.denoising.reset();
    }
    Task<at::Tensor> MakeLap(const ForwardInputs& inputs, int64_t) override {
      std::vector<at::Tensor> outputs;
      for (int64_t i = 0; i < inputs.latents.size(0); ++i) {
        ForwardCall one = call_;
        one.inputs = {inputs.latents.narrow(0, i, 1), inputs.timestep.narrow(0, i, 1),
                      inputs.prompt_emb.narrow(0, i, 1), inputs.prompt_emb_mask.narrow(0, i, 1)};
        outputs.push_back(Output(engine_, one)[0]);
      }
      co_return at::stack(outputs);
    }
    void Stepped(int64_t, const at::Tensor&) override {}

   private:
    Engine& engine_;
    ForwardCall call_;
  };
  static at::Tensor Expected(LocalEngine& engine, const ForwardCall& call) {
    SinglePasses passes(engine, call);
    Task<at::Tensor> loop = DenoiseLoop(engine.Models().front().model->config(), call.inputs, *call.denoising, passes);
    loop.Start();
    return loop.Result();
  }
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_SERVER_ENGINE_DENOISE_FIXTURE_H_
