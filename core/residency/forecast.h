#ifndef DITSERVE_CORE_RESIDENCY_FORECAST_H_
#define DITSERVE_CORE_RESIDENCY_FORECAST_H_

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/memory/ledger.h"
#include "core/residency/policy.h"

namespace ditserve {

// Whose laps are to be told.
struct ForecastRequest {
  Policy::JoinRequest ride;
  int riders = 1;  // That begin together, all alike.
  // What the executor takes for each module; empty: it is not known, and times tell nothing.
  std::vector<absl::Duration> computing;
  // Bytes of each module in each form, by module and form.
  std::vector<std::vector<int64_t>> form_bytes;
  // How fast modules are made from the checkpoint, and from copies, bytes of what is read a second.
  double disk_bytes_per_second = 1e9;
  double copy_bytes_per_second = 1e9;
  // And from copies in the device's own memory; nullopt: as from others.
  std::optional<double> own_copy_bytes_per_second;
  // For so many bytes a second of memory that no copy had before, moving takes longer; nullopt: it does not.
  std::optional<double> fresh_bytes_per_second;
};

// What a lap of all riders takes.
struct ForecastLap {
  // The device's and the host's ledger when most was held: total_bytes() is that peak.
  MemoryUsage device, host;
  int64_t disk_read_bytes = 0;
  int64_t device_copy_bytes = 0;  // As TransferCost.
  int64_t copy_read_bytes = 0;    // Of copies that others were made from.
  int most_riders = 0;            // Admitted at one time.
  absl::Duration time;            // Until the last of them is done.
  absl::Duration computing;       // Of that, the executor's.
};

struct Forecast {
  ForecastLap first;     // From what is there now.
  ForecastLap repeated;  // The same again, from what the first left.
};

// Has `policy` decide two laps that nobody else rides, in a time that passes for this alone. What moves where, when,
// and beside what follows from the policy itself, so that no second description of it can be wrong. Loads are read one
// after the other at the speeds given; one module is computed at a time.
//
// `policy`: a trial of what serves (see Policy's second constructor); it is spent. Pure: no thread, file or device.
// Errors: as Policy::Join; ResourceExhausted while other processes leave no room for it; Internal if the policy leaves
// a rider waiting for nothing.
absl::StatusOr<Forecast> ForecastLaps(Policy& policy, const ForecastRequest& request, absl::Duration now);

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_FORECAST_H_
