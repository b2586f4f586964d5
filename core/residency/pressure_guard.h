#ifndef DITSERVE_CORE_RESIDENCY_PRESSURE_GUARD_H_
#define DITSERVE_CORE_RESIDENCY_PRESSURE_GUARD_H_

#include <cstdint>

#include "absl/status/status.h"
#include "core/devices/device.h"
#include "core/residency/residency_manager.h"

namespace ditserve {

// Keeps what is used within what other processes leave: says so when memory gets scarce, and when it is there again.
// Budgets stay as they were configured; what can never fit is judged by them.
//
// Thread safety: thread-compatible. Ownership: both must outlive it.
class PressureGuard {
 public:
  PressureGuard(Device* device, ResidencyManager* residency) : device_(*device), residency_(*residency) {}

  // What is left of a memory of this size to others and to sudden needs: a fiftieth. Of a device's own at least 512
  // MiB: there everybody, this process too, takes some unasked and late, when a kernel is first launched.
  static int64_t ReserveBytes(const Device& device, Memory memory, int64_t total_bytes);

  // Looks at the host's memory and the device's. To be called about once a second.
  absl::Status Check();

 private:
  // `usage`: of `memory`, which may use `allowed_bytes`.
  void Tell(Memory memory, const MemoryUsage& usage, int64_t allowed_bytes, int64_t* told_bytes);

  Device& device_;
  ResidencyManager& residency_;
  int64_t host_bytes_ = MemoryBudget::kUnlimited;  // As was said last.
  int64_t device_bytes_ = MemoryBudget::kUnlimited;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_PRESSURE_GUARD_H_
