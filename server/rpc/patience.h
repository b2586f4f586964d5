#ifndef DITSERVE_SERVER_RPC_PATIENCE_H_
#define DITSERVE_SERVER_RPC_PATIENCE_H_

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace ditserve {

// Why a call was cancelled that began `given` before its client's deadline and has `left` until it now: tells a client
// that has left (Cancelled) from one whose time is up (DeadlineExceeded), for gRPC cancels the call for either. Both
// are infinite where there is no deadline.
absl::Status WhyCancelled(absl::Duration given, absl::Duration left);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_PATIENCE_H_
