#ifndef DITSERVE_MODELS_DENOISING_FLOW_STEP_H_
#define DITSERVE_MODELS_DENOISING_FLOW_STEP_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "absl/status/status.h"
#include "models/config.h"
#include "models/denoising/flow_schedule.h"

// What a denoising loop does to latents beside the model. Operations and their roundings are those of the pipelines of
// diffusers 0.42.1 and DiffSynth-Studio 2.1.12 on a CPU, so that equal predictions give equal latents, bit for bit.
//
// Latents, noise, images and velocities are of one floating point dtype, the loop's; shape [B, 16, H/8, W/8], as
// Unpatchify (models/qwen_image_dit.h) makes them of what the model returns. Nothing is changed in place. LibTorch's
// exceptions pass through.
namespace ditserve {

// What the model is given at a step: its float32 timestep (FlowSchedule) in the loop's dtype, then divided by 1000 in
// that. Shape [batch].
at::Tensor ModelTimestep(float timestep, int64_t batch, at::ScalarType dtype);

// Where a loop starts that is given an image: sigma noise + (1 - sigma) image, with the first sigma of the schedule.
// `image`: shape [B or 1, 16, H/8, W/8].
at::Tensor NoisedImage(Numerics numerics, const at::Tensor& image, const at::Tensor& noise, float sigma);

// What stays of an image. diffusers puts the noised image back outside the mask after each step; DiffSynth-Studio mixes
// the velocity that leads there into what the model predicts.
struct Inpainting {
  at::Tensor image;  // Shape [B or 1, 16, H/8, W/8].
  at::Tensor noise;  // What the loop started from, [B, 16, H/8, W/8]; not looked at for DiffSynth-Studio.
  at::Tensor mask;   // 1 where the image is made anew, 0 where it stays, or in between; [B or 1, 1, H/8, W/8].
};

// The latents after step `step` of the schedule: x + (sigmas[step + 1] - sigmas[step]) v. The product is rounded to the
// loop's dtype before the sum is; diffusers rounds the difference of the sigmas before that. `velocity`: what the model
// predicts, guided. `inpainting`: null where everything is made anew; checked before.
at::Tensor FlowStep(Numerics numerics, const FlowSchedule& schedule, int64_t step, const at::Tensor& latents,
                    const at::Tensor& velocity, const Inpainting* inpainting = nullptr);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_DENOISING_FLOW_STEP_H_
