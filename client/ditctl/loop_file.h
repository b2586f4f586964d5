#ifndef DITSERVE_CLIENT_DITCTL_LOOP_FILE_H_
#define DITSERVE_CLIENT_DITCTL_LOOP_FILE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "ditserve/v1/denoise_service.pb.h"

// Files of the latents in the middle of a denoising loop, from which it can go on.
namespace ditserve::ditctl {

// Saves what there is after `steps_done` steps of the loop that `request` asks for, as WriteTensor does. A .safetensors
// file tells the steps, and which schedule and noise they are of.
absl::Status SaveLoop(const std::string& path, const v1::Tensor& latents, int64_t steps_done,
                      const v1::DenoiseRequest& request);

// Makes of `request`, whole but for these, one that goes on from the file: sets latents and first_step. `first_step`:
// what the command line says, needed where the file tells no steps.
// Errors: as ReadTensor; InvalidArgument where the file is not of this loop: of another dtype, schedule or noise, or
// after other steps than `first_step`.
absl::Status ResumeLoop(const std::string& path, std::optional<int64_t> first_step, v1::DenoiseRequest& request);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_LOOP_FILE_H_
