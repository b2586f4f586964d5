#ifndef DITSERVE_CORE_RESIDENCY_FORECAST_H_
#define DITSERVE_CORE_RESIDENCY_FORECAST_H_

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/memory/ledger.h"
#include "core/residency/policy/policy.h"

namespace ditserve {

// Whose laps are to be told.
struct ForecastRequest {
  Policy::JoinRequest ride;
  int riders = 1;  // That begin together, all alike.
  // What the executor takes for each module by itself; empty: it is not known, and times tell nothing.
  std::vector<absl::Duration> computing;
  // Bytes of each module in each form, by module and form.
  std::vector<std::vector<int64_t>> form_bytes;
  // How fast bytes come from the checkpoint, and from copies, a second, beside the work that there is with them.
  double disk_bytes_per_second = 1e9;
  double copy_bytes_per_second = 1e9;
  // And from copies in the device's own memory; nullopt: as from others.
  std::optional<double> own_copy_bytes_per_second;
  // The processor time of a load; null: none. Loads are worked at by `load_processors` at a time.
  std::function<absl::Duration(const StartLoad&)> work;
  int load_processors = 1;
  // All of these compute, and work that is done meanwhile holds them up; 0: what computes does nothing else.
  int computing_processors = 0;
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
  absl::Duration computing;       // Of that, the executor's, and what held it up.
};

struct Forecast {
  ForecastLap first;     // From what is there now.
  ForecastLap repeated;  // The same again, from what the first left.
};

// Has `policy` decide two laps that nobody else rides, in a time that passes for this alone. What moves where, when,
// and beside what follows from the policy itself, so that no second description of it can be wrong. Loads are read one
// after the other at the speeds given, and each takes as much longer as there is work with it; one module is computed
// at a time. Where computing has all processors, a load that is under way takes its work's share of them: who waits is
// held up by nothing, and no processor does more than one thing at a time. So `computing` is of modules that nothing
// held up; the lap's has both.
//
// `policy`: a trial of what serves (see Policy's second constructor); it is spent. Pure: no thread, file or device.
// Errors: as Policy::Join; ResourceExhausted while other processes leave no room for it; Internal if the policy leaves
// a rider waiting for nothing.
absl::StatusOr<Forecast> ForecastLaps(Policy& policy, const ForecastRequest& request, absl::Duration now);

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_FORECAST_H_
