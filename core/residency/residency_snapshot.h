#ifndef DITSERVE_CORE_RESIDENCY_RESIDENCY_SNAPSHOT_H_
#define DITSERVE_CORE_RESIDENCY_RESIDENCY_SNAPSHOT_H_

#include <algorithm>
#include <cstdint>
#include <numeric>
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
  int device = 0;  // Its place among the snapshot's.
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
  int device = 0;  // Where `to` is the device's: its place among the snapshot's.
};

// One memory, as the ledger and the policy have it.
struct MemoryInfo {
  MemoryUsage usage;
  int64_t evictions = 0;  // Copies dropped for others since the start.
};

// What a device keeps of modulation, and what came of that since the start.
struct ModulationInfo {
  int64_t rows = 0;  // Kept, or being made to be kept.
  int64_t used_bytes = 0;
  int64_t hits = 0;  // Passes that read all that they needed; a loop has one a step.
  int64_t misses = 0;
  int64_t evictions = 0;  // Rows that went for others.
};

// A device, its memory, and who waits for it.
struct DeviceInfo {
  std::string name;  // "cpu", "cuda:0".
  MemoryInfo memory;
  int64_t other_processes_bytes = 0;  // Of its memory, that other processes hold.
  int waiting = 0;                    // Requests not yet admitted.
  // How long one that came now would wait for admission, if it is as those before it were.
  absl::Duration predicted_wait;
  int64_t modules_computed = 0;  // For all riders, since the start.
  ModulationInfo modulation;
};

// Where every byte is, at one moment.
struct ResidencySnapshot {
  absl::Duration time;              // Since some fixed moment.
  std::vector<DeviceInfo> devices;  // In the order in which the server was given them.
  MemoryInfo host;
  std::vector<TierBytes> models;
  std::vector<RiderInfo> riders;
  std::vector<TransferTotal> transfers;
  int64_t host_unpinned_bytes = 0;  // That devices could not pin: as Device::unpinned_bytes, of all.

  const MemoryInfo& memory(Memory of) const {
    return IsHost(of) ? host : devices[static_cast<size_t>(DeviceOf(of))].memory;
  }
  // Of a rider's or a transfer's device.
  const std::string& NameOf(int device) const { return devices[static_cast<size_t>(device)].name; }
  // Of all devices.
  int waiting() const {
    return std::accumulate(devices.begin(), devices.end(), 0,
                           [](int sum, const DeviceInfo& device) { return sum + device.waiting; });
  }
  // Of the device where it is least.
  absl::Duration predicted_wait() const {
    absl::Duration least = absl::InfiniteDuration();
    for (const DeviceInfo& device : devices) least = std::min(least, device.predicted_wait);
    return devices.empty() ? absl::ZeroDuration() : least;
  }
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_RESIDENCY_SNAPSHOT_H_
