#ifndef DITSERVE_CORE_MEMORY_BUFFER_H_
#define DITSERVE_CORE_MEMORY_BUFFER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "core/devices/device.h"
#include "core/memory/ledger.h"

namespace ditserve {

// Memory of a device or its host, allocated when it is first asked for and freed when it is destroyed.
//
// Ownership: must not outlive its Device. Thread safety: thread-safe.
class Mapping {
 public:
  Mapping(Device* device, Memory memory, int64_t bytes) : device_(device), memory_(memory), bytes_(bytes) {}
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  // Does nothing if it was allocated before. Errors: as Device::Allocate.
  absl::Status Allocate() ABSL_LOCKS_EXCLUDED(mutex_);

  // Null until Allocate.
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  Device* const device_;
  const Memory memory_;
  const int64_t bytes_;
  absl::Mutex mutex_;
  std::atomic<std::byte*> data_ = nullptr;  // Written under the mutex.
};

// Reserved memory of a device or its host: a mapping of its own, or a part of one that others have parts of too.
//
// Reserving is bookkeeping and cheap; allocating and freeing can take milliseconds, so they are kept apart: reserve
// under a lock, prepare and destroy outside of it.
//
// Ownership: must not outlive its Device and Ledger. Thread safety: thread-compatible.
class Buffer {
 public:
  using Events = std::vector<std::shared_ptr<DeviceEvent>>;

  Buffer() = default;
  // All of a mapping of its own.
  Buffer(Device* device, Reservation reservation);
  // As much of `mapping` from `offset_bytes` on as is reserved, of which operations up to `in_use_until` still read.
  Buffer(std::shared_ptr<Mapping> mapping, int64_t offset_bytes, Reservation reservation, Events in_use_until);
  Buffer(Buffer&& other) noexcept = default;
  Buffer& operator=(Buffer&& other) noexcept;
  // Waits for operations that still read it.
  ~Buffer();

  // Valid after Prepare.
  std::byte* data() const { return mapping_->data() + offset_bytes_; }
  int64_t size_bytes() const { return reservation_.bytes(); }
  Memory memory() const { return reservation_.memory(); }
  const std::shared_ptr<Mapping>& mapping() const { return mapping_; }
  int64_t offset_bytes() const { return offset_bytes_; }
  Reservation& reservation() { return reservation_; }
  const Events& in_use_until() const { return in_use_until_; }

  // Makes the memory ready to be written: allocates it if it is not, and waits for operations that still read it.
  absl::Status Prepare();

  // Operations up to `event` (null: finished ones) read the buffer.
  void InUseUntil(std::unique_ptr<DeviceEvent> event);

 private:
  Reservation reservation_;  // The last to go: until then the memory is there.
  std::shared_ptr<Mapping> mapping_;
  int64_t offset_bytes_ = 0;
  Events in_use_until_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_MEMORY_BUFFER_H_
