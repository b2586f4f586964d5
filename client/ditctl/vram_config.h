#ifndef DITSERVE_CLIENT_DITCTL_VRAM_CONFIG_H_
#define DITSERVE_CLIENT_DITCTL_VRAM_CONFIG_H_

#include <string>

#include "absl/status/statusor.h"
#include "ditserve/v1/vram_config.pb.h"

namespace ditserve::ditctl {

// A vram_config given as a JSON object of DiffSynth-Studio's keys, or as the path of a file that holds one.
// Errors: InvalidArgument that names the key; the values are the server's to check.
absl::StatusOr<v1::VramConfig> ParseVramConfig(const std::string& json_or_path);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_VRAM_CONFIG_H_
