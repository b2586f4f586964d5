#ifndef DITSERVE_SERVER_GATE_TIMEOUTS_H_
#define DITSERVE_SERVER_GATE_TIMEOUTS_H_

#include "absl/time/time.h"

namespace ditserve {

// How long a gate waits for a client. A forward pass may be silent for minutes: its answer is waited for without end.
struct GateTimeouts {
  absl::Duration greeting =
      absl::Seconds(10);  // For TLS and HTTP/2 to begin, settings acknowledged, a header block's end.
  absl::Duration progress = absl::Seconds(30);      // For more of a message that has begun, or for room to send more.
  absl::Duration message_room = absl::Seconds(10);  // A message waits for others' to end.
  absl::Duration ping_after = absl::Seconds(60);    // Silence, after which the client is asked whether it lives,
  absl::Duration ping = absl::Seconds(20);          // and this long to say so.
  absl::Duration tick = absl::Seconds(1);           // How often all this is looked at.
  // After which, a tenth more or less, a client is told to connect anew.
  absl::Duration connection_age = absl::InfiniteDuration();
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_TIMEOUTS_H_
