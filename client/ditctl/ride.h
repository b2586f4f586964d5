#ifndef DITSERVE_CLIENT_DITCTL_RIDE_H_
#define DITSERVE_CLIENT_DITCTL_RIDE_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "core/base/flags.h"
#include "ditserve/v1/denoise_service.pb.h"
#include "ditserve/v1/transformer_service.pb.h"

namespace ditserve::ditctl {

// Which model a request runs, how its weights are held, and when it takes part in sweeps.
struct RideOptions {
  std::string model, priority = "interactive", join = "auto";
  std::optional<std::string> profile, vram_config;
  std::optional<double> vram_limit_gib;
};

void AddRideFlags(RideOptions& options, CLI::App& app);

// Errors: InvalidArgument that names the flag.
absl::Status FillRide(const RideOptions& options, v1::ForwardRequest& request);
absl::Status FillRide(const RideOptions& options, v1::DenoiseRequest& request);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_RIDE_H_
