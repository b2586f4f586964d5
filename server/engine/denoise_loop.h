#ifndef DITSERVE_SERVER_ENGINE_DENOISE_LOOP_H_
#define DITSERVE_SERVER_ENGINE_DENOISE_LOOP_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "core/base/task.h"
#include "models/denoising/flow_schedule.h"
#include "models/denoising/step_cache.h"
#include "models/qwen_image_dit.h"

namespace ditserve {

// What latents are before the first step of the schedule: those of the inputs; noise; or an image, noised as far as the
// first sigma says.
enum class LoopStart : uint8_t { kLatents, kNoise, kImage };

// Of a loop that runs the model on negative prompts too.
struct Guidance {
  double scale = 1;
  at::Tensor prompt_emb;       // As ForwardInputs'; in the dtype of those that they are beside.
  at::Tensor prompt_emb_mask;  // Likewise.
};

// What a denoising loop does around the model. What its tensors view stays as it is until the loop waits for the first
// time: by then it has its own.
struct Denoising {
  FlowSchedule schedule;
  int64_t first_step = 0;            // Steps before it were made by another call, whose latents this one goes on with.
  std::optional<Guidance> guidance;  // Nothing: the model runs on the prompts alone.
  LoopStart start = LoopStart::kLatents;
  std::vector<uint64_t> seeds;  // Of the noise, where there is any: as SeededNoise, checked.
  at::Tensor image;             // To start from, or whose rest is kept: one for all of the batch, or one for each item.
  at::Tensor mask;              // Likewise; undefined: nothing of the image is kept. As Inpainting's, checked.
  int64_t latents_every = 0;    // After every so many steps of the schedule they are told; 0: never.
  std::optional<StepCacheOptions> step_cache;  // Checked.

  int64_t steps_left() const { return schedule.steps() - first_step; }
};

// Whoever runs the model for a loop.
class Laps {
 public:
  virtual ~Laps() = default;

  // A pass, the `lap`-th of the loop. What it is given stays as it is until the task is done.
  virtual Task<at::Tensor> MakeLap(const ForwardInputs& inputs, int64_t lap) = 0;

  // The latents after a step of the schedule, [B, 16, H/8, W/8]; they are not changed any more.
  virtual void Stepped(int64_t step, const at::Tensor& latents) = 0;
};

// The batch of the model's timestep at each step that is left: shape [steps_left].
at::Tensor LoopTimesteps(const Denoising& what, at::ScalarType dtype);

// Denoises latents: in each step one pass, which both branches of guidance share, and what the references do with what
// it predicts. `inputs`: of the batch's first pass without guidance; copied before the task waits for the first time.
// Of each pass under guidance the second half of the items are the negative prompts, in the order of the others.
// Returns the latents after the last step, in the dtype of `inputs.latents`. Where it does not start from those, only
// their shape and dtype count.
// `config`, `what` and `laps` must outlive the task.
Task<at::Tensor> DenoiseLoop(const QwenImageDiTConfig& config, const ForwardInputs& inputs, const Denoising& what,
                             Laps& laps);

// Of a pass of the loop that takes the most.
ForwardShape ShapeOf(const ForwardInputs& inputs, const Denoising& what);

// Bytes of host memory that a loop takes beside its passes, or would for images of another size.
int64_t LoopBytes(const ForwardInputs& inputs, const Denoising& what);
int64_t LoopBytes(const ForwardInputs& inputs, const Denoising& what, int64_t height, int64_t width);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_DENOISE_LOOP_H_
