#ifndef DITSERVE_CLIENT_DITCTL_INPUTS_H_
#define DITSERVE_CLIENT_DITCTL_INPUTS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "core/base/flags.h"
#include "ditserve/v1/transformer_service.pb.h"

namespace ditserve::ditctl {

// What a forward pass is to compute from. What no file gives is made up from the seed.
struct InputOptions {
  std::optional<int64_t> height, width;  // Pixels.
  int64_t batch = 1, prompt_tokens = 5, seed = 0;
  std::optional<double> timestep;
  std::string dtype = "bfloat16";
  std::optional<std::string> inputs, latents, timestep_file, prompt_emb, prompt_emb_mask;
};

void AddInputFlags(InputOptions& options, CLI::App& app);

// Sets the tensors, height and width. A tensor comes from its own flag, else from `inputs`, else it is made up;
// pixels that are not given follow from latents of a file, else they are 1024.
// Errors: InvalidArgument, NotFound, or of the disk; they name the flag or file.
absl::Status FillInputs(const InputOptions& options, v1::ForwardRequest& request);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_INPUTS_H_
