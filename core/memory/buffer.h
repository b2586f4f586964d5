#ifndef DITSERVE_CORE_MEMORY_BUFFER_H_
#define DITSERVE_CORE_MEMORY_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "core/base/memory.h"
#include "core/devices/event.h"

namespace ditserve {

class Arena;

// Bytes at offsets of an arena's addresses.
struct ArenaRange {
  int64_t offset_bytes;
  int64_t size_bytes;
};

// A part of an arena, and what is under way in it: who writes it, and who still reads it. Destroying it gives it back:
// that is bookkeeping, and may be done under a lock.
//
// Ownership: must not outlive its Arena. Thread safety: thread-compatible.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept { Swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer taken(std::move(other));
    Swap(taken);
    return *this;
  }
  ~Buffer();

  // Where it is; not to be accessed before Prepare.
  std::byte* data() const;
  // Of what was asked for, rounded up to the arena's granule.
  int64_t size_bytes() const { return range_.size_bytes; }
  Memory memory() const;
  // Whether it has its memory: from the beginning, or since Prepare.
  bool has_memory() const { return has_memory_; }
  // Of what it takes in its arena, what its end does not leave there: its Prepare failed, or never was.
  int64_t lost_bytes() const;
  const Arena* arena() const { return arena_; }

  // Makes it ready to be written: moves memory from the holes that it displaces to these addresses, and takes more; and
  // in host memory, which threads write, waits for operations that still read it. On a device those are in
  // in_use_until, and writers come after them. For transfer threads, and not under a lock. Errors: as Device::Commit;
  // it can be tried again.
  absl::Status Prepare();

  // The event that its contents are written, once a transfer has enqueued that; null: they are.
  const EventPtr& ready() const { return ready_; }
  // Everything that writes it was enqueued, behind in_use_until, up to `ready`.
  void WrittenOnce(EventPtr ready);

  // What a writer must come after.
  const Events& in_use_until() const { return in_use_until_; }
  // Operations read it up to `event` (null: they are finished); they were issued after those of the call before.
  void InUseUntil(EventPtr event);

 private:
  friend class Arena;
  Buffer(Arena* arena, ArenaRange range, bool has_memory, Events in_use_until)
      : arena_(arena), range_(range), has_memory_(has_memory), in_use_until_(std::move(in_use_until)) {}
  void Swap(Buffer& other);

  Arena* arena_ = nullptr;
  ArenaRange range_ = {0, 0};
  bool has_memory_ = true;
  EventPtr ready_;
  Events in_use_until_;
  std::vector<ArenaRange> displaced_;  // Holes whose memory this part gets.
  Events displaced_in_use_until_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_MEMORY_BUFFER_H_
