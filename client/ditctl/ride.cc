#include "client/ditctl/ride.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/ditctl/vram_config.h"
#include "core/base/status_macros.h"

namespace ditserve::ditctl {
namespace {

template <typename Request>
absl::Status Fill(const RideOptions& options, Request& request) {
  if (options.profile && options.vram_config) {
    return absl::InvalidArgumentError("give either --profile or --vram-config");
  }
  // Flags name the enumerators of the API: "batch" is PRIORITY_BATCH.
  v1::Priority priority;
  if (!v1::Priority_Parse(absl::StrCat("PRIORITY_", absl::AsciiStrToUpper(options.priority)), &priority)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--priority: expected interactive or batch, found '", options.priority, "'"));
  }
  v1::Join join;
  if (!v1::Join_Parse(absl::StrCat("JOIN_", absl::AsciiStrToUpper(options.join)), &join)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--join: expected auto, immediate or wait, found '", options.join, "'"));
  }
  request.set_model(options.model);
  request.set_priority(priority);
  request.set_join(join);
  if (options.profile) request.set_profile(*options.profile);
  if (options.vram_config) {
    DITSERVE_ASSIGN_OR_RETURN(*request.mutable_vram_config(), ParseVramConfig(*options.vram_config));
  }
  if (options.vram_limit_gib) request.set_vram_limit_gib(*options.vram_limit_gib);
  return absl::OkStatus();
}

}  // namespace

void AddRideFlags(RideOptions& options, CLI::App& app) {
  AddFlag(app, "model", "NAME", "model; may be left out where the server has one", &options.model);
  AddFlag(app, "profile", "NAME", "configured profile (see `ditctl profiles`)", &options.profile);
  AddFlag(app, "vram-config", "JSON|FILE", "inline vram_config with DiffSynth-Studio's keys", &options.vram_config);
  AddFlag(app, "vram-limit-gib", "GIB", "overrides the profile's limit", &options.vram_limit_gib);
  AddFlag(app, "priority", "PRIORITY", "interactive (default) or batch", &options.priority);
  AddFlag(app, "join", "POLICY", "a sweep under way: auto (default), immediate or wait", &options.join);
}

absl::Status FillRide(const RideOptions& options, v1::ForwardRequest& request) { return Fill(options, request); }
absl::Status FillRide(const RideOptions& options, v1::DenoiseRequest& request) { return Fill(options, request); }

}  // namespace ditserve::ditctl
