#ifndef DITSERVE_CORE_DEVICES_CUDA_HOST_MEMORY_H_
#define DITSERVE_CORE_DEVICES_CUDA_HOST_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "core/devices/cuda_faults.h"

namespace ditserve {

// Host memory in registered ranges, which every device may copy from and to. Where a range can't be registered (some
// hosts refuse it, or allow a process only so much) it is used as it is: the driver stages copies of it, which may
// block, and no kernel reaches it.
//
// Thread safety: thread-safe. The caller has set the device.
class CudaHostMemory {
 public:
  // The size and alignment of ranges. Larger ones would round small copies up further, and smaller ones cost more
  // calls.
  static constexpr int64_t kRangeBytes = 2 << 20;

  // `faults` must outlive it.
  explicit CudaHostMemory(CudaFaults* faults) : faults_(*faults) {}

  // As Device's, in multiples of kRangeBytes.
  absl::Status Commit(std::byte* begin, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void Decommit(std::byte* begin, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Move(std::byte* from, std::byte* to, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  // Of memory that could not be registered.
  int64_t unpinned_bytes() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Registers it, or notes that it can't be. Errors: Unavailable if the device is lost.
  absl::Status Pin(std::byte* range) ABSL_LOCKS_EXCLUDED(mutex_);
  void Unpin(std::byte* range) ABSL_LOCKS_EXCLUDED(mutex_);

  CudaFaults& faults_;
  mutable absl::Mutex mutex_;
  std::set<const std::byte*> unpinned_ ABSL_GUARDED_BY(mutex_);  // Ranges.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_CUDA_HOST_MEMORY_H_
