#include "core/buffer.h"

#include "core/status_macros.h"

namespace ditserve {

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  // If waiting fails the device is lost and nothing reads the memory any more.
  if (in_use_until_ != nullptr) static_cast<void>(in_use_until_->Wait());
  device_->Free(memory(), data_, size_bytes());
}

absl::Status Buffer::Prepare() {
  if (in_use_until_ != nullptr) {
    DITSERVE_RETURN_IF_ERROR(in_use_until_->Wait());
    in_use_until_ = nullptr;
  }
  if (data_ == nullptr) {
    DITSERVE_ASSIGN_OR_RETURN(data_, device_->Allocate(memory(), size_bytes()));
  }
  return absl::OkStatus();
}

}  // namespace ditserve
