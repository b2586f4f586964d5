#ifndef DITSERVE_CORE_RESIDENCY_POLICY_ESTIMATES_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_ESTIMATES_H_

#include <cstdint>
#include <map>
#include <optional>

#include "absl/time/time.h"
#include "core/residency/policy/copy_store.h"

namespace ditserve {

// What was learned of how long things take on a device. Wrong estimates cost time, never progress.
struct Estimates {
  // How fast weights are taken to move while nothing has been moved yet, bytes a second.
  static constexpr double kAssumedBytesPerSecond = 1e9;

  absl::Duration moving;                           // Time in which loads were under way.
  absl::Duration moving_since;                     // While they are: what is not in `moving` yet.
  int64_t moved_bytes = 0;                         // Stored bytes of what they moved meanwhile.
  std::map<WeightsId, double> computing_per_byte;  // Seconds that a pass computes for each byte of activations.
  std::optional<absl::Duration> usual_ride;        // How long riders ride, lately.

  // (Loads that failed took time, and moved nothing.)
  bool knows_moving() const { return moving > absl::ZeroDuration() && moved_bytes > 0; }
  double bytes_per_second() const {
    return knows_moving() ? static_cast<double>(moved_bytes) / absl::ToDoubleSeconds(moving) : kAssumedBytesPerSecond;
  }
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_ESTIMATES_H_
