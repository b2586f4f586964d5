#ifndef DITSERVE_MODELS_DENOISING_FLOW_SCHEDULE_H_
#define DITSERVE_MODELS_DENOISING_FLOW_SCHEDULE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "models/config.h"

namespace ditserve {

// A shift that grows with the picture: mu is base_shift for base_image_seq_len tokens, max_shift for max_image_seq_len,
// and on the straight line through both for any other number. A sigma s becomes e^mu / (e^mu + 1/s - 1). Fields are
// named as in diffusers' scheduler_config.json; the defaults are Qwen-Image's. Lightning's distilled models have
// base_shift = max_shift = ln 3, and no terminal.
struct DynamicShift {
  double base_shift = 0.5;
  double max_shift = 0.9;
  int64_t base_image_seq_len = 256;
  int64_t max_image_seq_len = 8192;
};

// What a schedule is made from; the defaults are those of Qwen-Image, Qwen-Image-2512 and the Edit models in diffusers.
struct FlowScheduleOptions {
  // Whose schedule. They differ in what strength and sigmas mean, and by roundings.
  Numerics numerics = Numerics::kDiffusers;

  int64_t steps = 50;  // 1 to 1000; not looked at where sigmas are given. (DiffSynth-Studio's own default is 30.)

  // Sigmas to start from instead of even ones: 1 to 1000, falling, each in (0, 1]. diffusers shifts them like its own
  // (shift 1, no dynamic shift and no terminal leave them as they are); DiffSynth-Studio takes them as they are.
  std::vector<double> sigmas;

  std::optional<DynamicShift> dynamic_shift = DynamicShift{};
  double shift = 1.0;  // Without a dynamic shift a sigma s becomes shift * s / (1 + (shift - 1) * s).

  // The last step's sigma: all are stretched so that they end there. In (0, 1).
  std::optional<double> shift_terminal = 0.02;

  // How much of a given image (models/denoising/flow_step.h, NoisedImage) is made anew: above 0, at most 1, which
  // leaves nothing of it. diffusers skips the first (1 - strength) of the steps; DiffSynth-Studio makes all of them,
  // from what the shift makes of a first sigma of `strength`.
  double strength = 1.0;
};

// What a loop of N steps goes through. Step i takes latents at sigmas[i] to sigmas[i + 1].
struct FlowSchedule {
  std::vector<float> sigmas;     // N + 1, strictly falling, in (0, 1]; the last is 0.
  std::vector<float> timesteps;  // N: 1000 * sigmas[i] in float32. The model is given ModelTimestep's.
  int64_t skipped_steps = 0;     // Steps that `strength` took from the front, and that are not among the N.

  int64_t steps() const { return static_cast<int64_t>(timesteps.size()); }
};

// The schedule of FlowMatchEulerDiscreteScheduler in diffusers 0.42.1 as the Qwen-Image pipelines set it, bit for bit;
// or of FlowMatchScheduler in DiffSynth-Studio 2.1.12, to within 2^-22 (its own bits differ between processors).
// `image_tokens`: of the output alone, H/16 * W/16; references do not count. DiffSynth-Studio's mu of 0.8, where it is
// not told the size, and its exponential_shift_mu, are base_shift = max_shift = mu.
//
// Errors: InvalidArgument with the option as its field, "dynamic_shift.base_shift" or "sigmas[3]", and what was
// expected; also where the sigmas that come out do not fall, or one is 0.
absl::StatusOr<FlowSchedule> MakeFlowSchedule(const FlowScheduleOptions& options, int64_t image_tokens);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_DENOISING_FLOW_SCHEDULE_H_
