#ifndef DITSERVE_CORE_RESIDENCY_RESIDENCY_SNAPSHOT_H_
#define DITSERVE_CORE_RESIDENCY_RESIDENCY_SNAPSHOT_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "core/base/memory.h"
#include "core/base/priority.h"
#include "core/memory/ledger.h"

namespace ditserve {

// A model's parameters, in stored bytes, by the nearest tier that holds them; the three add up to the model.
struct TierBytes {
  std::string model;
  int64_t device_bytes = 0;
  int64_t host_bytes = 0;
  int64_t disk_bytes = 0;
};

struct RiderInfo {
  std::string model;
  std::string profile;
  int modules_done = 0;
  int modules_total = 0;
  Priority priority = Priority::kInteractive;
  bool waiting = false;  // For the sweep before it to end.
  absl::Duration stall;  // So far.
};

// Bytes moved between two tiers since the start, in the dtype they came in.
struct TransferTotal {
  Tier from = Tier::kDisk;
  Tier to = Tier::kHost;
  int64_t bytes = 0;
};

// Where every byte is, at one moment.
struct ResidencySnapshot {
  absl::Duration time;      // Since some fixed moment.
  std::string device_name;  // "cpu", "cuda:0".
  MemoryUsage device;
  MemoryUsage host;
  std::vector<TierBytes> models;
  std::vector<RiderInfo> riders;
  int waiting = 0;  // Requests not yet admitted.
  // How long one that came now would wait for admission, if it is as those before it were.
  absl::Duration predicted_wait;
  std::vector<TransferTotal> transfers;
  std::array<int64_t, 2> evictions = {};  // Copies dropped for others since the start: of device, of host memory.
  int64_t other_processes_bytes = 0;      // Device memory that other processes hold.
  int64_t host_unpinned_bytes = 0;        // As Device::unpinned_bytes.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_RESIDENCY_SNAPSHOT_H_
