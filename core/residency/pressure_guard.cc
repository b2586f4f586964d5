#include "core/residency/pressure_guard.h"

#include <algorithm>

#include "core/base/status_macros.h"

namespace ditserve {
namespace {

// Growing back by less is not worth the while.
constexpr int64_t kSmallestGrowth = int64_t{64} << 20;

// What of a memory is free beyond the reserve; less than 0 where others need some of what is used.
absl::StatusOr<int64_t> SpareBytes(const Device& device, Memory memory) {
  DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus status, device.MemoryStatusOf(memory));
  return status.available_bytes - PressureGuard::ReserveBytes(device, memory, status.total_bytes);
}

}  // namespace

int64_t PressureGuard::ReserveBytes(const Device& device, Memory memory, int64_t total_bytes) {
  constexpr int64_t kShare = 50;
  constexpr int64_t kLeastBytes = int64_t{512} << 20;
  const int64_t share = total_bytes / kShare;
  return device.IsInHostMemory(memory) ? share : std::min(std::max(share, kLeastBytes), total_bytes);
}

absl::Status PressureGuard::Check() {
  const ResidencySnapshot now = residency_.Snapshot();
  DITSERVE_ASSIGN_OR_RETURN(int64_t host_spare, SpareBytes(device_, Memory::kHost));
  int64_t device_spare = 0;
  if (device_.computes_in_host_memory()) {
    // It is one memory: what is free is given once, to the device's part first, and the host's copies go first.
    const int64_t wants = std::max<int64_t>(now.device.wanted_bytes - now.device.total_bytes(), 0);
    const int64_t host_can_lose = std::max<int64_t>(now.host.total_bytes() - residency_.least_host_bytes(), 0);
    device_spare = host_spare >= 0 ? std::min(host_spare, wants) : std::min<int64_t>(host_spare + host_can_lose, 0);
    host_spare -= device_spare;
  } else {
    DITSERVE_ASSIGN_OR_RETURN(device_spare, SpareBytes(device_, device_.memory()));
  }
  Tell(Memory::kHost, now.host, std::max(now.host.total_bytes() + host_spare, residency_.least_host_bytes()),
       &host_bytes_);
  Tell(device_.memory(), now.device, std::max<int64_t>(now.device.total_bytes() + device_spare, 0), &device_bytes_);
  return absl::OkStatus();
}

void PressureGuard::Tell(Memory memory, const MemoryUsage& usage, int64_t allowed_bytes, int64_t* told_bytes) {
  if (allowed_bytes >= usage.wanted_bytes) allowed_bytes = MemoryBudget::kUnlimited;
  if (allowed_bytes == *told_bytes) return;
  const bool grows = allowed_bytes > *told_bytes;
  if (grows && allowed_bytes != MemoryBudget::kUnlimited && allowed_bytes - *told_bytes < kSmallestGrowth) return;
  residency_.SetPressure(memory, allowed_bytes);
  *told_bytes = allowed_bytes;
}

}  // namespace ditserve
