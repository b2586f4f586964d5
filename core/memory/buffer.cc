#include "core/memory/buffer.h"

#include <utility>

#include "core/base/status_macros.h"
#include "core/memory/arena.h"

namespace ditserve {

Buffer::~Buffer() {
  if (arena_ != nullptr) arena_->Put(*this);
}

void Buffer::Swap(Buffer& other) {
  std::swap(arena_, other.arena_);
  std::swap(range_, other.range_);
  std::swap(has_memory_, other.has_memory_);
  std::swap(ready_, other.ready_);
  std::swap(in_use_until_, other.in_use_until_);
  std::swap(displaced_, other.displaced_);
  std::swap(displaced_in_use_until_, other.displaced_in_use_until_);
}

std::byte* Buffer::data() const { return arena_->begin_ + range_.offset_bytes; }

Memory Buffer::memory() const { return arena_->memory(); }

int64_t Buffer::lost_bytes() const {
  int64_t bytes = has_memory_ ? 0 : range_.size_bytes;
  for (const ArenaRange& range : displaced_) bytes -= range.size_bytes;
  return bytes;
}

absl::Status Buffer::Prepare() {
  if (!has_memory_) DITSERVE_RETURN_IF_ERROR(arena_->Commit(*this));
  if (!arena_->device_->IsInHostMemory(memory())) return absl::OkStatus();
  DITSERVE_RETURN_IF_ERROR(WaitForAll(in_use_until_));
  in_use_until_.clear();
  return absl::OkStatus();
}

void Buffer::WrittenOnce(EventPtr ready) {
  in_use_until_.clear();
  ready_ = std::move(ready);
}

void Buffer::InUseUntil(EventPtr event) {
  in_use_until_.clear();
  if (event != nullptr) in_use_until_.push_back(std::move(event));
}

}  // namespace ditserve
