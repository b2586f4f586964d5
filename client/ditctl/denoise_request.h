#ifndef DITSERVE_CLIENT_DITCTL_DENOISE_REQUEST_H_
#define DITSERVE_CLIENT_DITCTL_DENOISE_REQUEST_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "client/ditctl/ride.h"
#include "core/base/flags.h"
#include "ditserve/v1/denoise_service.pb.h"

namespace ditserve::ditctl {

// What a denoising loop is to be made of. A prompt that no file gives is made up from the first seed.
struct DenoiseOptions {
  RideOptions ride;
  std::string seeds = "0", dtype = "bfloat16";
  std::optional<std::string> prompt_emb, prompt_mask, negative_emb, negative_mask, image, mask, resume;
  std::optional<std::string> sigmas, step_cache, tea_coefficients;
  std::optional<double> cfg_scale, shift, base_shift, max_shift, shift_terminal, strength;
  std::optional<int64_t> batch, steps, first_step;
  int64_t height = 1024, width = 1024, prompt_tokens = 5, latents_every = 0;
  bool lightning = false;
};

void AddDenoiseFlags(DenoiseOptions& options, CLI::App& app);

// Errors: InvalidArgument, NotFound, or of the disk; they name the flag or file. Values are the server's to check.
absl::StatusOr<v1::DenoiseRequest> MakeDenoiseRequest(const DenoiseOptions& options);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_DENOISE_REQUEST_H_
