#ifndef DITSERVE_CORE_MEMORY_ARENA_H_
#define DITSERVE_CORE_MEMORY_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/devices/device.h"
#include "core/memory/buffer.h"

namespace ditserve {

class Arena;

// Holes that were taken out of an arena. Their bytes are the arena's until Free has been called.
//
// Ownership: must not outlive its Arena; destroying it frees it. Thread safety: thread-compatible.
class Garbage {
 public:
  Garbage() = default;
  Garbage(Garbage&& other) noexcept { Swap(other); }
  Garbage& operator=(Garbage&& other) noexcept {
    Garbage taken(std::move(other));
    Swap(taken);
    return *this;
  }
  ~Garbage() { Free(); }

  int64_t size_bytes() const;
  // Whether Free would not block: nothing reads it any more.
  bool Ready() const { return AllDone(in_use_until_); }
  // Waits until nothing reads it and takes its memory; not under a lock.
  void Free();

 private:
  friend class Arena;
  void Swap(Garbage& other);

  Arena* arena_ = nullptr;
  std::vector<ArenaRange> ranges_;
  Events in_use_until_;
};

// One range of addresses of one memory, in which copies take parts. A part that is given back leaves a hole, which
// keeps its memory for the next part: writing to fresh memory costs more than copying. Where no hole is large enough a
// part gets fresh addresses, to which memory is moved from holes elsewhere: so memory is never lost to fragments, and a
// part can always take from holes as many bytes as they have.
//
// Everything is in units of the memory's granule. Operations that still read a hole or a part are events, and whoever
// writes there next is ordered behind them. The ledger is not asked: callers book bytes, of parts, holes and garbage.
//
// Ownership: must not outlive its Device. Thread safety: thread-safe. Lock order: its mutex is the last; nothing is
// called while it is held.
class Arena {
 public:
  // Addresses are free of charge; with so many times those that the memory has, none are too scattered.
  static constexpr int64_t kAddressesPerByte = 16;
  // With fewer than these it could not be told that a copy fits.
  static constexpr int64_t kFewestAddressesPerByte = 2;
  // Where a host has huge pages they have this size; parts of so many bytes begin with one.
  static constexpr int64_t kHugePageBytes = 2 << 20;

  // Errors: as Device::ReserveAddresses.
  static absl::StatusOr<std::unique_ptr<Arena>> Make(Device* device, Memory memory, int64_t address_bytes);
  // All parts and garbage are gone by then.
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // A part of at least `bytes`, of which holes give so many and no more, as far as there are any; may be called under a
  // lock. It never fails: what can't be had is told by its Prepare.
  Buffer Take(int64_t bytes, int64_t most_reused_bytes = std::numeric_limits<int64_t>::max())
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Takes holes out, of `bytes` in all or as many as there are; may be called under a lock. The smallest go first, as
  // they are of the least use.
  Garbage Trim(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  // Of holes.
  int64_t cached_bytes() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Of parts, holes and garbage. The device has given no more memory at any time, and as much once parts are prepared.
  int64_t committed_bytes() const ABSL_LOCKS_EXCLUDED(mutex_);

  // What a part of `bytes` takes: these, rounded up to the granule.
  int64_t RoundUp(int64_t bytes) const { return (bytes + granule_bytes_ - 1) / granule_bytes_ * granule_bytes_; }

  Memory memory() const { return memory_; }

 private:
  friend class Buffer;
  friend class Garbage;

  // Bytes with memory that are in no part, of which operations up to `in_use_until` still read.
  struct Hole {
    int64_t size_bytes;
    Events in_use_until;
  };
  using Holes = std::map<int64_t, Hole>;  // By their offset. Neighbours differ in what they wait for.

  Arena(Device* device, Memory memory, int64_t address_bytes, std::byte* begin);

  // Gives back what the buffer was: a hole, or addresses without memory.
  void Put(Buffer& part) ABSL_LOCKS_EXCLUDED(mutex_);
  // Moves the memory of what the part displaces to the part, and gives it the rest.
  absl::Status Commit(Buffer& part) ABSL_LOCKS_EXCLUDED(mutex_);
  // Takes the memory of ranges that nothing uses any more.
  void Decommit(const std::vector<ArenaRange>& ranges) ABSL_LOCKS_EXCLUDED(mutex_);

  // The smallest run of neighbouring holes of at least `bytes`; of none, holes_.end().
  Holes::iterator FindRun(int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes `bytes` from the run that begins with `first`; appends to `events` what is to be waited for.
  void TakeRun(Holes::iterator first, int64_t bytes, Events& events) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes the smallest holes, of `bytes` in all or as many as there are.
  std::vector<ArenaRange> TakeSmallest(int64_t bytes, Events& events) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddHole(ArenaRange range, const Events& in_use_until) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The offset of fresh addresses; nullopt if there are none.
  std::optional<int64_t> TakeAddresses(int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PutAddresses(const std::vector<ArenaRange>& ranges) ABSL_LOCKS_EXCLUDED(mutex_);
  void PutAddressesLocked(ArenaRange range) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Device* const device_;
  const Memory memory_;
  const int64_t address_bytes_;
  const int64_t granule_bytes_;
  std::byte* const begin_;

  mutable absl::Mutex mutex_;
  Holes holes_ ABSL_GUARDED_BY(mutex_);
  std::map<int64_t, int64_t> fresh_ ABSL_GUARDED_BY(mutex_);  // Addresses without memory: sizes by their offset.
  int64_t cached_bytes_ ABSL_GUARDED_BY(mutex_) = 0;          // Of holes.
  int64_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;            // Of parts and garbage.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_MEMORY_ARENA_H_
