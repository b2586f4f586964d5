#ifndef DITSERVE_CORE_RESIDENCY_PRESSURE_GUARD_H_
#define DITSERVE_CORE_RESIDENCY_PRESSURE_GUARD_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "core/devices/device.h"
#include "core/residency/residency_manager.h"

namespace ditserve {

// Keeps what is used within what other processes leave: says so when memory gets scarce, and when it is there again.
// Budgets stay as they were configured; what can never fit is judged by them.
//
// Thread safety: thread-compatible. Ownership: all must outlive it.
class PressureGuard {
 public:
  // `devices`: the manager's. One that computes in host memory is the only one.
  PressureGuard(std::vector<Device*> devices, ResidencyManager* residency)
      : devices_(std::move(devices)),
        residency_(*residency),
        told_bytes_(devices_.size() + 1, MemoryBudget::kUnlimited) {}

  // What is left of a memory of this size to others and to sudden needs: a fiftieth. Of a device's own at least 512
  // MiB: there everybody, this process too, takes some unasked and late, when a kernel is first launched.
  static int64_t ReserveBytes(const Device& device, Memory memory, int64_t total_bytes);

  // Looks at the host's memory and the devices'. To be called about once a second.
  absl::Status Check();

 private:
  // `usage`: of `memory`, which may use `allowed_bytes`.
  void Tell(Memory memory, const MemoryUsage& usage, int64_t allowed_bytes);

  const std::vector<Device*> devices_;
  ResidencyManager& residency_;
  std::vector<int64_t> told_bytes_;  // As was said last, by Index(Memory).
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_PRESSURE_GUARD_H_
