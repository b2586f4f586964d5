#ifndef DITSERVE_SERVER_DEVICE_CHECK_H_
#define DITSERVE_SERVER_DEVICE_CHECK_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/config/config.h"
#include "server/engine/profile_catalogue.h"

namespace ditserve {

// What `--check --device` tells of one device, as if it were the only one. Errors: why it is not there, or would not
// serve. `on_device_lost`: as LocalEngineOptions'.
absl::StatusOr<std::string> CheckDevice(const ServerConfig& config, const ProfileCatalogue& catalogue,
                                        const std::string& name,
                                        const std::function<void(const absl::Status&)>& on_device_lost);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_DEVICE_CHECK_H_
