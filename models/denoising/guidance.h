#ifndef DITSERVE_MODELS_DENOISING_GUIDANCE_H_
#define DITSERVE_MODELS_DENOISING_GUIDANCE_H_

#include <ATen/core/Tensor.h>

#include "absl/status/statusor.h"
#include "models/config.h"

namespace ditserve {

// Whether a loop runs the model a second time, on the negative prompt: in diffusers (true_cfg_scale) if the scale is
// more than 1, in DiffSynth-Studio (cfg_scale) if it is not 1; in both only where there is a negative prompt. " " is
// one. Errors: InvalidArgument of field "true_cfg_scale": NaN or infinite.
absl::StatusOr<bool> IsGuided(Numerics numerics, double scale, bool has_negative_prompt);

// Classifier-free guidance: c = negative + scale (positive - negative). diffusers 0.42.1 then gives each token of c the
// length (L2 over its channels) that it has in `positive`; a token of length 0 becomes NaN. DiffSynth-Studio 2.1.12
// leaves c as it is. Each operation rounds, as there.
//
// positive, negative: what the model predicts, of one floating point dtype; shape [B, H/16 * W/16, 64]. So is the
// result.
at::Tensor Guided(Numerics numerics, const at::Tensor& positive, const at::Tensor& negative, double scale);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_DENOISING_GUIDANCE_H_
