#include "core/spare_buffers.h"

#include <iterator>
#include <utility>

namespace ditserve {
namespace {

// Copies of equal modules differ by so much: see CopyLayout::as_stored.
constexpr int64_t kMostExcessBytes = 4096;

}  // namespace

void SpareBuffers::Put(Buffer buffer) {
  buffer.reservation().SetKind(MemoryKind::kStaging);
  buffers_.push_back(std::move(buffer));
}

std::optional<Buffer> SpareBuffers::Take(Memory memory, int64_t bytes) {
  for (auto it = buffers_.rbegin(); it != buffers_.rend(); ++it) {  // The newest is likeliest to be in a cache.
    if (it->memory() != memory || it->size_bytes() < bytes || it->size_bytes() > bytes + kMostExcessBytes) continue;
    Buffer buffer = std::move(*it);
    buffers_.erase(std::next(it).base());
    buffer.reservation().SetKind(MemoryKind::kWeights);
    return buffer;
  }
  return std::nullopt;
}

int64_t SpareBuffers::Bytes(Memory memory) const {
  int64_t bytes = 0;
  for (const Buffer& buffer : buffers_) {
    if (buffer.memory() == memory) bytes += buffer.size_bytes();
  }
  return bytes;
}

void SpareBuffers::Discard(Memory memory, int64_t bytes, std::vector<Buffer>& garbage) {
  int64_t moved = 0;
  std::vector<Buffer> kept;
  for (Buffer& buffer : buffers_) {
    if (buffer.memory() == memory && moved < bytes) {
      moved += buffer.size_bytes();
      garbage.push_back(std::move(buffer));
    } else {
      kept.push_back(std::move(buffer));
    }
  }
  buffers_ = std::move(kept);
}

void SpareBuffers::DiscardAll(std::vector<Buffer>& garbage) {
  for (Buffer& buffer : buffers_) garbage.push_back(std::move(buffer));
  buffers_.clear();
}

}  // namespace ditserve
