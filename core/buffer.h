#ifndef DITSERVE_CORE_BUFFER_H_
#define DITSERVE_CORE_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "core/device.h"
#include "core/ledger.h"

namespace ditserve {

// Reserved memory of a device or its host, allocated when it is first asked for.
//
// Reserving is bookkeeping and cheap; allocating and freeing can take milliseconds, so they are kept apart: reserve
// under a lock, allocate and destroy outside of it.
//
// Ownership: must not outlive its Device and Ledger. Thread safety: thread-compatible.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device* device, Reservation reservation) : device_(device), reservation_(std::move(reservation)) {}
  Buffer(Buffer&& other) noexcept
      : device_(other.device_),
        reservation_(std::move(other.reservation_)),
        data_(std::exchange(other.data_, nullptr)),
        in_use_until_(std::move(other.in_use_until_)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(reservation_, other.reservation_);
    std::swap(data_, other.data_);
    std::swap(in_use_until_, other.in_use_until_);
    return *this;
  }
  // Waits for operations that still read it.
  ~Buffer();

  // Null until Allocate.
  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return reservation_.bytes(); }
  Memory memory() const { return reservation_.memory(); }
  Reservation& reservation() { return reservation_; }

  // Makes the memory ready to be written: allocates it if it is not, and waits for operations that still read it.
  absl::Status Prepare();

  // Operations up to `event` (null: finished ones) read the buffer.
  void InUseUntil(std::unique_ptr<DeviceEvent> event) { in_use_until_ = std::move(event); }

 private:
  Device* device_ = nullptr;
  Reservation reservation_;
  std::byte* data_ = nullptr;
  std::unique_ptr<DeviceEvent> in_use_until_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_BUFFER_H_
