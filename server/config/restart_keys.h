#ifndef DITSERVE_SERVER_CONFIG_RESTART_KEYS_H_
#define DITSERVE_SERVER_CONFIG_RESTART_KEYS_H_

#include <string>
#include <vector>

#include "server/config/config.h"

namespace ditserve {

// The keys that two configurations differ in and that a running server does not take over, by their paths:
// "requests.max_batch", "profiles".
std::vector<std::string> KeysThatNeedARestart(const ServerConfig& running, const ServerConfig& wanted);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_CONFIG_RESTART_KEYS_H_
