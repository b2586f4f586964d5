#include "core/residency/pressure_guard.h"

#include <algorithm>

#include "core/base/status_macros.h"

namespace ditserve {
namespace {

// Growing back by less is not worth the while.
constexpr int64_t kSmallestGrowth = int64_t{64} << 20;

// What of a memory is free beyond the reserve; less than 0 where others need some of what is used. Of the `booked`
// bytes those that nobody has written yet are free still, and not to be had twice.
absl::StatusOr<int64_t> SpareBytes(const Device& device, Memory memory, int64_t booked) {
  DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus status, device.MemoryStatusOf(memory));
  const int64_t unwritten = std::max<int64_t>(booked - status.own_bytes.value_or(booked), 0);
  return status.available_bytes - unwritten - PressureGuard::ReserveBytes(device, memory, status.total_bytes);
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
  const MemoryUsage& host = now.host.usage;
  int64_t in_host_memory = host.total_bytes();
  for (const Device* each : devices_) {
    if (each->computes_in_host_memory()) in_host_memory += now.memory(each->memory()).usage.total_bytes();
  }
  DITSERVE_ASSIGN_OR_RETURN(int64_t host_spare, SpareBytes(*devices_.front(), Memory::kHost, in_host_memory));
  for (const Device* each : devices_) {
    const MemoryUsage& device = now.memory(each->memory()).usage;
    int64_t spare = 0;
    if (each->computes_in_host_memory()) {
      // It is one memory: what is free is given once, to the device's part first, and the host's copies go first.
      const int64_t wants = std::max<int64_t>(device.wanted_bytes - device.total_bytes(), 0);
      const int64_t host_can_lose = std::max<int64_t>(host.total_bytes() - residency_.least_bytes(Memory::kHost), 0);
      spare = host_spare >= 0 ? std::min(host_spare, wants) : std::min<int64_t>(host_spare + host_can_lose, 0);
      host_spare -= spare;
    } else {
      DITSERVE_ASSIGN_OR_RETURN(spare, SpareBytes(*each, each->memory(), device.total_bytes()));
    }
    Tell(each->memory(), device, std::max(device.total_bytes() + spare, residency_.least_bytes(each->memory())));
  }
  Tell(Memory::kHost, host, std::max(host.total_bytes() + host_spare, residency_.least_bytes(Memory::kHost)));
  return absl::OkStatus();
}

void PressureGuard::Tell(Memory memory, const MemoryUsage& usage, int64_t allowed_bytes) {
  int64_t& told_bytes = told_bytes_[Index(memory)];
  if (allowed_bytes >= usage.wanted_bytes) allowed_bytes = MemoryBudget::kUnlimited;
  if (allowed_bytes == told_bytes) return;
  const bool grows = allowed_bytes > told_bytes;
  if (grows && allowed_bytes != MemoryBudget::kUnlimited && allowed_bytes - told_bytes < kSmallestGrowth) return;
  residency_.SetPressure(memory, allowed_bytes);
  told_bytes = allowed_bytes;
}

}  // namespace ditserve
