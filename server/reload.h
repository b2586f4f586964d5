#ifndef DITSERVE_SERVER_RELOAD_H_
#define DITSERVE_SERVER_RELOAD_H_

#include "absl/status/status.h"
#include "server/config/command_line.h"
#include "server/config/config.h"
#include "server/devices.h"
#include "server/engine/local_engine.h"

namespace ditserve {

// Reads the configuration again, sets its budgets and the log's level, and says what of it needs a restart. One that is
// invalid, in whatever part, changes nothing.
absl::Status Reload(const CommandLine& line, const ServerConfig& running, const Devices& devices, LocalEngine& engine);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RELOAD_H_
