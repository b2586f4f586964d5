#include "server/gate/call.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace ditserve {

size_t PassingBytes::Take(uint8_t* out, size_t most, uint64_t end) {
  const uint64_t ready = std::min(received(), end) - taken_;
  const size_t bytes = std::min<uint64_t>(most, ready);
  std::memcpy(out, bytes_.data() + head_, bytes);
  head_ += bytes;
  taken_ += bytes;
  if (head_ == bytes_.size()) {
    bytes_.clear();
    head_ = 0;
  } else if (head_ > bytes_.size() / 2) {
    bytes_.erase(0, head_);
    head_ = 0;
  }
  return bytes;
}

std::optional<const uint8_t*> PassingBytes::Find(uint64_t offset, size_t bytes) const {
  if (offset < taken_ || received() < offset + bytes) return std::nullopt;
  return reinterpret_cast<const uint8_t*>(bytes_.data()) + head_ + (offset - taken_);
}

void Call::BeginMessage(size_t prefix_bytes, int64_t bytes) {
  walked = counted + prefix_bytes;
  counted = walked + static_cast<uint64_t>(bytes);
  walk.reset();
  if (admitted->method->message != nullptr) walk.emplace(admitted->method->message, bytes);
}

absl::Status Call::Walk() {
  const uint64_t begin = std::exchange(walked, std::min(request.received(), counted));
  if (!walk || walked == begin) return absl::OkStatus();
  const uint8_t* const come = request.Find(begin, walked - begin).value();
  return walk->Pass({reinterpret_cast<const char*>(come), walked - begin});
}

}  // namespace ditserve
