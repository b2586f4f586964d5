#include "server/engine/denoise_loop.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "models/denoising/flow_step.h"
#include "models/denoising/guidance.h"
#include "models/denoising/noise.h"
#include "models/errors.h"

namespace ditserve {
namespace {

// What one step makes beside what it begins with and ends with: predictions, their parts and sums, in float32 where
// rounding is the references'. Counted generously; a picture's latents are small beside a pass.
constexpr int64_t kLatentsInFlight = 24;

// For such latents.
at::Tensor NoiseOf(const std::vector<uint64_t>& seeds, const at::Tensor& latents) {
  absl::StatusOr<at::Tensor> noise = SeededNoise(seeds, latents.size(0), latents.size(1), latents.size(2) * 8,
                                                 latents.size(3) * 8, latents.scalar_type());
  if (!noise.ok()) throw StatusError(noise.status());
  return *std::move(noise);
}

// Both branches' prompts, one after the other; the shorter ones are filled up with tokens that don't count.
void JoinPrompts(const ForwardInputs& inputs, const Guidance& guidance, ForwardInputs& joined) {
  std::vector<int64_t> shape = inputs.prompt_emb.sizes().vec();
  const int64_t batch = shape[0];
  shape[0] = 2 * batch;
  shape[1] = std::max(shape[1], guidance.prompt_emb.size(1));
  joined.prompt_emb = at::zeros(shape, inputs.prompt_emb.options());
  joined.prompt_emb_mask = at::zeros({shape[0], shape[1]}, at::TensorOptions().dtype(at::kBool));
  const auto take = [&](int64_t first, const at::Tensor& emb, const at::Tensor& mask) {
    const int64_t tokens = emb.size(1);
    joined.prompt_emb.narrow(0, first, batch).narrow(1, 0, tokens).copy_(emb);
    at::Tensor counts = joined.prompt_emb_mask.narrow(0, first, batch).narrow(1, 0, tokens);
    mask.defined() ? counts.copy_(mask) : counts.fill_(true);
  };
  take(0, inputs.prompt_emb, inputs.prompt_emb_mask);
  take(batch, guidance.prompt_emb, guidance.prompt_emb_mask);
}

at::Tensor Copied(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.clone(at::MemoryFormat::Contiguous) : tensor;
}

ForwardInputs NegativesOf(const ForwardInputs& inputs, const Guidance& guidance) {
  ForwardInputs negatives = inputs;
  negatives.prompt_emb = guidance.prompt_emb;
  negatives.prompt_emb_mask = guidance.prompt_emb_mask;
  return negatives;
}

}  // namespace

at::Tensor LoopTimesteps(const Denoising& what, at::ScalarType dtype) {
  std::vector<at::Tensor> timesteps;
  for (int64_t step = what.first_step; step < what.schedule.steps(); ++step) {
    timesteps.push_back(ModelTimestep(what.schedule.timesteps[static_cast<size_t>(step)], /*batch=*/1, dtype));
  }
  return at::cat(timesteps);
}

Task<at::Tensor> DenoiseLoop(const QwenImageDiTConfig& config, const ForwardInputs& inputs, const Denoising& what,
                             Laps& laps) {
  const at::ScalarType dtype = inputs.latents.scalar_type();
  const int64_t batch = inputs.latents.size(0), items = what.guidance ? 2 * batch : batch;
  const int64_t height = inputs.latents.size(2) * 8, width = inputs.latents.size(3) * 8;
  const at::Tensor noise = what.seeds.empty() ? at::Tensor() : NoiseOf(what.seeds, inputs.latents);
  const at::Tensor image = Copied(what.image);
  at::Tensor latents;
  switch (what.start) {
    case LoopStart::kLatents:
      latents = Copied(inputs.latents);
      break;
    case LoopStart::kNoise:
      latents = noise;
      break;
    case LoopStart::kImage:
      latents = NoisedImage(config.numerics, image, noise, what.schedule.sigmas.front());
      break;
  }
  const Inpainting inpainting = {image, noise, Copied(what.mask)};
  ForwardInputs lap = inputs;
  if (what.guidance) {
    JoinPrompts(inputs, *what.guidance, lap);
  } else {
    lap.prompt_emb = Copied(inputs.prompt_emb);
    lap.prompt_emb_mask = Copied(inputs.prompt_emb_mask);
  }
  for (int64_t step = what.first_step; step < what.schedule.steps(); ++step) {
    lap.latents = what.guidance ? at::cat({latents, latents}) : latents;
    lap.timestep = ModelTimestep(what.schedule.timesteps[static_cast<size_t>(step)], items, dtype);
    at::Tensor predicted = co_await laps.MakeLap(lap, step - what.first_step);
    if (what.guidance) {
      predicted = Guided(config.numerics, predicted.narrow(0, 0, batch), predicted.narrow(0, batch, batch),
                         what.guidance->scale);
    }
    latents = FlowStep(config.numerics, what.schedule, step, latents, Unpatchify(predicted, config, height, width),
                       inpainting.mask.defined() ? &inpainting : nullptr);
    laps.Stepped(step, latents);
  }
  co_return latents;
}

ForwardShape ShapeOf(const ForwardInputs& inputs, const Denoising& what) {
  ForwardShape shape = ShapeOf(inputs);
  if (what.guidance) {
    const std::vector<int64_t> negatives = ShapeOf(NegativesOf(inputs, *what.guidance)).text_tokens;
    shape.text_tokens.insert(shape.text_tokens.end(), negatives.begin(), negatives.end());
  }
  shape.timesteps = what.steps_left();
  if (what.step_cache) shape.step_cache = what.step_cache->rule;
  return shape;
}

int64_t LoopBytes(const ForwardInputs& inputs, const Denoising& what) {
  const ForwardShape shape = ShapeOf(inputs);
  return LoopBytes(inputs, what, shape.height, shape.width);
}

int64_t LoopBytes(const ForwardInputs& inputs, const Denoising& what, int64_t height, int64_t width) {
  const auto token_bytes = inputs.prompt_emb.size(2) * static_cast<int64_t>(inputs.prompt_emb.element_size());
  int64_t items = inputs.latents.size(0), tokens = inputs.prompt_emb.size(1);
  if (what.guidance) tokens = std::max(tokens, what.guidance->prompt_emb.size(1));
  const ForwardShape own = ShapeOf(inputs);
  const int64_t elements = inputs.latents[0].numel() * height * width / (own.height * own.width);
  const int64_t latents = elements * static_cast<int64_t>(sizeof(float));
  if (what.guidance) items *= 2;
  return items * (tokens * (token_bytes + 1) + kLatentsInFlight * latents);
}

}  // namespace ditserve
