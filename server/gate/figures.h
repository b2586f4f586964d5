#ifndef DITSERVE_SERVER_GATE_FIGURES_H_
#define DITSERVE_SERVER_GATE_FIGURES_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace ditserve {

// What one door sees, at some moment.
struct DoorFigures {
  std::string name;
  int64_t connections = 0;
  int64_t calls = 0;
  int64_t message_bytes = 0;  // That are counted.
  // In all.
  int64_t turned_away = 0;                      // Connections that were closed as there were too many.
  std::map<absl::StatusCode, int64_t> refused;  // Calls that were answered with an error here.
};

struct GateFigures {
  std::vector<DoorFigures> doors;
  int64_t answer_bytes = 0;  // Of answers that are on their way, or will be; behind the gate.
  absl::Time certificate_ends = absl::InfiniteFuture();  // When it ends to be valid; infinite without TLS.
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_FIGURES_H_
