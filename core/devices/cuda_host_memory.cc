#include "core/devices/cuda_host_memory.h"

#include <cuda_runtime_api.h>

#include "core/base/status_macros.h"
#include "core/devices/host_addresses.h"

namespace ditserve {

absl::Status CudaHostMemory::Commit(std::byte* begin, int64_t bytes) {
  DITSERVE_RETURN_IF_ERROR(CommitHostMemory(begin, bytes));
  PopulateHostMemory(begin, bytes);  // Registering would do it in the driver, which lets nobody else in meanwhile.
  for (int64_t at = 0; at < bytes; at += kRangeBytes) {
    absl::Status pinned = Pin(begin + at);
    if (pinned.ok()) continue;
    for (int64_t done = 0; done < at; done += kRangeBytes) Unpin(begin + done);
    DecommitHostMemory(begin, bytes);
    return pinned;
  }
  return absl::OkStatus();
}

void CudaHostMemory::Decommit(std::byte* begin, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kRangeBytes) Unpin(begin + at);
  DecommitHostMemory(begin, bytes);
}

// Pages are pinned where they are mapped, so they can't be moved as they are.
absl::Status CudaHostMemory::Move(std::byte* from, std::byte* to, int64_t bytes) {
  Decommit(from, bytes);
  return Commit(to, bytes);
}

int64_t CudaHostMemory::unpinned_bytes() const {
  const absl::MutexLock lock(&mutex_);
  return static_cast<int64_t>(unpinned_.size()) * kRangeBytes;
}

absl::Status CudaHostMemory::Pin(std::byte* range) {
  // Of every device, and in their addresses: kernels reach it.
  constexpr unsigned kFlags = cudaHostRegisterPortable | cudaHostRegisterMapped;
  const auto pin = [&] { return cudaHostRegister(range, kRangeBytes, kFlags); };
  cudaError_t error = pin();
  if (error == cudaErrorHostMemoryAlreadyRegistered) {
    // To give it back has failed once: what is registered are other pages.
    cudaGetLastError();
    DITSERVE_RETURN_IF_ERROR(faults_.StatusOf(cudaHostUnregister(range), "giving host memory back"));
    error = pin();
  }
  const absl::Status pinned = faults_.StatusOf(error, "pinning host memory");
  if (pinned.ok() || !faults_.Loss().ok()) return pinned;
  const absl::MutexLock lock(&mutex_);
  unpinned_.insert(range);
  return absl::OkStatus();
}

void CudaHostMemory::Unpin(std::byte* range) {
  {
    const absl::MutexLock lock(&mutex_);
    if (unpinned_.erase(range) > 0) return;
  }
  // Errors here are those of a lost device; or whoever is given the range next tries again.
  static_cast<void>(faults_.StatusOf(cudaHostUnregister(range), "giving host memory back"));
}

}  // namespace ditserve
