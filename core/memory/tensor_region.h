#ifndef DITSERVE_CORE_MEMORY_TENSOR_REGION_H_
#define DITSERVE_CORE_MEMORY_TENSOR_REGION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "core/devices/tensor_memory.h"
#include "core/memory/region.h"

namespace ditserve {

// Memory for the tensors of one pass, of as many bytes as were booked for it.
class TensorRegion final : public TensorMemory {
 public:
  explicit TensorRegion(absl::Span<std::byte> memory)
      : begin_(memory.data()), region_(static_cast<int64_t>(memory.size())) {}

  std::byte* Allocate(int64_t bytes) override ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    const std::optional<int64_t> offset = region_.Take(bytes);
    return offset ? begin_ + *offset : nullptr;
  }
  void Free(std::byte* data) override ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    region_.Give(data - begin_);
  }

  // Ends `owner`, whose memory it is, when the last tensor is gone and nobody takes any more.
  void Own(std::shared_ptr<void> owner) { owner_ = std::move(owner); }

  // How much of it was needed so far.
  int64_t most_bytes() const ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    return region_.most_bytes();
  }

 private:
  std::byte* const begin_;
  mutable absl::Mutex mutex_;
  Region region_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<void> owner_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_MEMORY_TENSOR_REGION_H_
