#ifndef DITSERVE_SERVER_CONFIG_COMMAND_LINE_H_
#define DITSERVE_SERVER_CONFIG_COMMAND_LINE_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/config/config.h"
#include "server/engine/model_source.h"

namespace ditserve {

// Command line flags.
struct CommandLine {
  std::string config_file;  // Empty: defaults only.
  std::vector<ModelSource> models;
  std::vector<std::string> devices;
  std::optional<std::string> listen, default_profile, device_budget, host_budget, metrics_listen, admin_listen,
      log_level, log_format;
  bool check = false;    // Validate the configuration and exit.
  bool probe = false;    // Ask the server of this configuration whether it is ready, and exit.
  bool version = false;  // Print the version and exit.
  std::string help;      // Not empty: print it and exit.
};

// `arguments` without the program's name. Errors: InvalidArgument that names the flag.
absl::StatusOr<CommandLine> ParseCommandLine(absl::Span<const char* const> arguments);

// Reads the file that the command line names and applies the flags. Errors: InvalidArgument; NotFound.
absl::StatusOr<ServerConfig> LoadConfig(const CommandLine& command_line);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_CONFIG_COMMAND_LINE_H_
