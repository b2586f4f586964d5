#ifndef DITSERVE_SERVER_CONFIG_CONFIG_FILE_H_
#define DITSERVE_SERVER_CONFIG_CONFIG_FILE_H_

#include <string>

#include "absl/status/statusor.h"

namespace ditserve {

// The text of a file that an operator wrote, at most 1 MiB of it. Errors: InvalidArgument; NotFound; of the disk. They
// name the whole path.
absl::StatusOr<std::string> ReadConfigFile(const std::string& path);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_CONFIG_CONFIG_FILE_H_
