#include "core/residency/pressure_guard.h"

#include <algorithm>

#include "core/base/status_macros.h"

namespace ditserve {
namespace {

// What is left to others and to sudden needs, of a memory's total.
constexpr int64_t kReserveShare = 50;
// Growing back by less is not worth the while.
constexpr int64_t kSmallestGrowth = int64_t{64} << 20;

}  // namespace

PressureGuard::PressureGuard(Device* device, Ledger* ledger, ResidencyManager* residency)
    : device_(*device), ledger_(*ledger), residency_(*residency) {
  configured_bytes_ = {ledger->Usage(Memory::kHost).wanted_bytes, ledger->Usage(Memory::kDevice).wanted_bytes};
  set_bytes_ = configured_bytes_;
}

absl::Status PressureGuard::SetBudget(Memory memory, int64_t bytes) {
  const absl::MutexLock lock(&mutex_);
  DITSERVE_RETURN_IF_ERROR(residency_.SetBudget(memory, bytes));
  configured_bytes_[Index(memory)] = bytes;
  set_bytes_[Index(memory)] = bytes;
  return absl::OkStatus();
}

absl::Status PressureGuard::Check() {
  const absl::MutexLock lock(&mutex_);
  for (const Memory memory : {Memory::kHost, Memory::kDevice}) {  // On a CPU the host's copies are the first to go.
    DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus status, device_.MemoryStatusOf(memory));
    DITSERVE_RETURN_IF_ERROR(Adjust(memory, status.available_bytes - status.total_bytes / kReserveShare));
  }
  return absl::OkStatus();
}

absl::Status PressureGuard::Adjust(Memory memory, int64_t change_bytes) {
  const auto index = Index(memory);
  const int64_t used = ledger_.Usage(memory).total_bytes();
  const int64_t least = memory == Memory::kHost ? residency_.least_host_bytes() : 0;
  const int64_t wanted =
      std::clamp(used + change_bytes, std::min(least, configured_bytes_[index]), configured_bytes_[index]);
  const bool grows = wanted > set_bytes_[index];
  if (wanted == set_bytes_[index]) return absl::OkStatus();
  if (grows && wanted < configured_bytes_[index] && wanted - set_bytes_[index] < kSmallestGrowth) {
    return absl::OkStatus();
  }
  DITSERVE_RETURN_IF_ERROR(residency_.SetBudget(memory, wanted));
  set_bytes_[index] = wanted;
  return absl::OkStatus();
}

}  // namespace ditserve
