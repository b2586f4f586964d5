#ifndef DITSERVE_SERVER_RPC_PROBE_H_
#define DITSERVE_SERVER_RPC_PROBE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace ditserve {

// Asks the server that listens on `address`, as one of this machine's, whether it is ready. Errors: Unavailable, saying
// why it is not.
absl::Status Probe(const std::string& address, absl::Duration timeout);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_PROBE_H_
