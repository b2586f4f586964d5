#ifndef DITSERVE_CORE_RESIDENCY_PRESSURE_GUARD_H_
#define DITSERVE_CORE_RESIDENCY_PRESSURE_GUARD_H_

#include <array>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "core/devices/device.h"
#include "core/memory/ledger.h"
#include "core/residency/residency_manager.h"

namespace ditserve {

// Keeps budgets within what other processes leave: lowers them when memory gets scarce, and raises them again, up to
// what was configured, when it is there.
//
// Thread safety: thread-safe. Ownership: all must outlive it.
class PressureGuard {
 public:
  PressureGuard(Device* device, Ledger* ledger, ResidencyManager* residency);

  // Sets the budget that memory would have without pressure, and the budget itself. Errors: as
  // ResidencyManager::SetBudget.
  absl::Status SetBudget(Memory memory, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  // Looks at the memories and adjusts their budgets. To be called about once a second.
  absl::Status Check() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status Adjust(Memory memory, int64_t change_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Device& device_;
  Ledger& ledger_;
  ResidencyManager& residency_;
  absl::Mutex mutex_;
  std::array<int64_t, 2> configured_bytes_ ABSL_GUARDED_BY(mutex_);  // By Memory.
  std::array<int64_t, 2> set_bytes_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_PRESSURE_GUARD_H_
