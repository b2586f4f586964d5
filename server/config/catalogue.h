#ifndef DITSERVE_SERVER_CONFIG_CATALOGUE_H_
#define DITSERVE_SERVER_CONFIG_CATALOGUE_H_

#include "absl/status/statusor.h"
#include "server/config/config.h"
#include "server/engine/profile_catalogue.h"

namespace ditserve {

// Checks the configured profiles against the device. Errors: as ResolveProfile; NotFound for an unknown default.
absl::StatusOr<ProfileCatalogue> MakeCatalogue(const ServerConfig& config);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_CONFIG_CATALOGUE_H_
