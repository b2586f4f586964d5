#ifndef DITSERVE_CORE_MEMORY_LEDGER_H_
#define DITSERVE_CORE_MEMORY_LEDGER_H_

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "core/base/memory.h"

namespace ditserve {

// One memory's ledger at one moment, bytes.
struct MemoryUsage {
  int64_t budget_bytes = 0;  // In force.
  int64_t weights_bytes = 0;
  int64_t staging_bytes = 0;
  int64_t activations_bytes = 0;
  int64_t peak_bytes = 0;        // Largest total so far.
  int64_t wanted_bytes = 0;      // Asked for; smaller than what is in force while running requests need more.
  int64_t runtime_bytes = 0;     // What LibTorch and the device's runtime hold for good.
  int64_t modulation_bytes = 0;  // For what timesteps alone decide; taken for good.

  int64_t total_bytes() const {
    return weights_bytes + staging_bytes + activations_bytes + runtime_bytes + modulation_bytes;
  }
};

// What reserved bytes are for.
enum class MemoryKind : uint8_t { kWeights, kStaging, kActivations, kRuntime, kModulation };

class Ledger;

// Bytes of one memory that nobody else can have. Given back when destroyed.
//
// Ownership: must not outlive its Ledger. Thread safety: thread-compatible.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation();

  int64_t bytes() const { return bytes_; }
  Memory memory() const { return memory_; }

  // Books the same bytes under another kind.
  void SetKind(MemoryKind kind);

  // Takes `bytes` of it, at most all, into a reservation of their own.
  Reservation Split(int64_t bytes);
  // Adds another one's bytes, of the same memory and kind.
  void Merge(Reservation other);

 private:
  friend class Ledger;
  Reservation(Ledger* ledger, Memory memory, MemoryKind kind, int64_t bytes)
      : ledger_(ledger), memory_(memory), kind_(kind), bytes_(bytes) {}

  Ledger* ledger_ = nullptr;
  Memory memory_ = Memory::kHost;
  MemoryKind kind_ = MemoryKind::kWeights;
  int64_t bytes_ = 0;
};

// Books every byte of each memory before it is allocated. What is reserved never exceeds the budget that is
// in force, not for an instant.
//
// Thread safety: thread-safe. Lock order: its mutex is the last; nothing is called while it is held.
class Ledger {
 public:
  // The budget of each memory that there is, by Index.
  explicit Ledger(const std::vector<int64_t>& budget_bytes);

  // Wants `memory` to have a budget of `bytes`. Where more is reserved, what is reserved stays in force as the budget,
  // and sinks with every reservation that ends, until it is `bytes`.
  void SetBudget(Memory memory, int64_t bytes);

  // Nullopt if the bytes do not fit beside what is reserved.
  std::optional<Reservation> TryReserve(Memory memory, MemoryKind kind, int64_t bytes);

  MemoryUsage Usage(Memory memory) const;

  // Begins to record the largest total of `memory` and returns the record's id.
  int64_t BeginWatermark(Memory memory);
  // The largest total since BeginWatermark, bytes.
  int64_t Watermark(int64_t id) const;
  void EndWatermark(int64_t id);

 private:
  friend class Reservation;
  struct Mark {
    Memory memory;
    int64_t bytes;
  };

  void Release(Memory memory, MemoryKind kind, int64_t bytes);
  void Rebook(Memory memory, MemoryKind from, MemoryKind to, int64_t bytes);

  mutable absl::Mutex mutex_;
  std::vector<MemoryUsage> usage_ ABSL_GUARDED_BY(mutex_);  // By Index.
  std::map<int64_t, Mark> watermarks_ ABSL_GUARDED_BY(mutex_);
  int64_t next_watermark_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_MEMORY_LEDGER_H_
