#include "core/memory/buffer.h"

#include "core/base/status_macros.h"

namespace ditserve {

Mapping::~Mapping() {
  if (data_ != nullptr) device_->Free(memory_, data_, bytes_);
}

absl::Status Mapping::Allocate() {
  const absl::MutexLock lock(&mutex_);
  if (data_ != nullptr) return absl::OkStatus();
  DITSERVE_ASSIGN_OR_RETURN(data_, device_->Allocate(memory_, bytes_));
  return absl::OkStatus();
}

Buffer::Buffer(Device* device, Reservation reservation)
    : reservation_(std::move(reservation)),
      mapping_(std::make_shared<Mapping>(device, reservation_.memory(), reservation_.bytes())) {}

Buffer::Buffer(std::shared_ptr<Mapping> mapping, int64_t offset_bytes, Reservation reservation, Events in_use_until)
    : reservation_(std::move(reservation)),
      mapping_(std::move(mapping)),
      offset_bytes_(offset_bytes),
      in_use_until_(std::move(in_use_until)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(reservation_, other.reservation_);
  std::swap(mapping_, other.mapping_);
  std::swap(offset_bytes_, other.offset_bytes_);
  std::swap(in_use_until_, other.in_use_until_);
  return *this;
}

Buffer::~Buffer() {
  // If waiting fails the device is lost and nothing reads the memory any more.
  for (const std::shared_ptr<DeviceEvent>& event : in_use_until_) static_cast<void>(event->Wait());
}

absl::Status Buffer::Prepare() {
  for (const std::shared_ptr<DeviceEvent>& event : in_use_until_) DITSERVE_RETURN_IF_ERROR(event->Wait());
  in_use_until_.clear();
  return mapping_->Allocate();
}

void Buffer::InUseUntil(std::unique_ptr<DeviceEvent> event) {
  in_use_until_.clear();
  if (event != nullptr) in_use_until_.push_back(std::move(event));
}

}  // namespace ditserve
