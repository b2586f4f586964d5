#ifndef DITSERVE_CORE_RESIDENCY_POLICY_COPY_STORE_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_COPY_STORE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "core/base/memory.h"
#include "core/placement/route.h"
#include "core/residency/policy/module_set.h"
#include "core/storage/module.h"

namespace ditserve {

// A set of parameters with one source: a checkpoint, an adapter. Ids are not used again.
using WeightsId = int;
// A rider of the policy. Ids are not used again.
using RiderId = int64_t;

// What a copy is of, how it is encoded, and where it is.
struct CopyKey {
  WeightsId weights = -1;
  ModuleIndex module = -1;
  FormId form = -1;
  Memory memory = Memory::kHost;

  friend bool operator==(const CopyKey&, const CopyKey&) = default;
};

class Pin;

// One copy of one module's weights. Written by CopyStore and by the policy.
struct Copy {
  Copy(int slot, const CopyKey& what, int64_t size_bytes, int64_t new_bytes)
      : id(slot), key(what), bytes(size_bytes), grown_bytes(new_bytes) {}

  const int id;  // Of its slot, which is used again after it is gone.
  const CopyKey key;
  const int64_t bytes;
  const int64_t grown_bytes;                 // Of these, what was not in its memory's cache when it was placed.
  bool streams = false;                      // It was loaded for who passes, and may not stay.
  bool used = false;                         // An operation has read it.
  bool may_stay = false;                     // By the last plan, for somebody who rides.
  bool rests = false;                        // A profile that was used rests here.
  bool doomed = false;                       // It goes to make room for the elder, as soon as nothing holds it.
  std::optional<absl::Duration> idle_since;  // When a rider that kept it left.

  bool ready() const { return ready_; }
  // Nothing reads or writes it, and nobody was promised that it stays.
  bool IsEvictable() const { return ready_ && pins_ == 0 && promised_.empty(); }
  bool IsPromisedTo(RiderId rider) const;

 private:
  friend class CopyStore;
  friend class Pin;
  bool ready_ = false;             // False while a transfer writes it.
  int pins_ = 0;                   // Leases, and transfers that read it.
  std::vector<RiderId> promised_;  // To riders that waited long.
};

// A lease of a copy, or a transfer that reads it: while there is one the copy stays. Moved, never copied.
//
// Ownership: must not outlive its CopyStore. Thread safety: as its CopyStore's.
class Pin {
 public:
  Pin() = default;
  explicit Pin(Copy& copy) : copy_(&copy) { ++copy.pins_; }
  Pin(Pin&& other) noexcept : copy_(std::exchange(other.copy_, nullptr)) {}
  Pin& operator=(Pin&& other) noexcept {
    std::swap(copy_, other.copy_);
    return *this;
  }
  ~Pin() {
    if (copy_ != nullptr) --copy_->pins_;
  }

  // Null if it pins nothing.
  Copy* copy() const { return copy_; }

 private:
  Copy* copy_ = nullptr;
};

// What is where: the copies of all weights in all memories.
//
// Ownership: pins must be gone before it. Thread safety: thread-compatible.
class CopyStore {
 public:
  WeightsId AddWeights(int modules);

  // Null if there is none.
  Copy* Find(const CopyKey& key) const;
  Copy& Add(const CopyKey& key, int64_t bytes, int64_t grown_bytes);
  // The copy must be evictable, or never have become ready.
  void Remove(Copy& copy);

  void SetReady(Copy& copy) { copy.ready_ = true; }
  void Promise(Copy& copy, RiderId rider);
  void Fulfil(Copy& copy, RiderId rider);
  // Takes back what was promised to a rider that is gone.
  void FulfilAll(RiderId rider);

  int modules(WeightsId weights) const { return static_cast<int>(by_module_[static_cast<size_t>(weights)].size()); }
  // In the order in which they were added.
  const std::vector<Copy*>& Of(WeightsId weights, ModuleIndex module) const {
    return by_module_[static_cast<size_t>(weights)][static_cast<size_t>(module)];
  }
  // By slot; null where one is free.
  const std::vector<std::unique_ptr<Copy>>& slots() const { return slots_; }

 private:
  std::vector<std::unique_ptr<Copy>> slots_;
  std::vector<int> free_slots_;
  std::vector<std::vector<std::vector<Copy*>>> by_module_;  // By weights and module: a few each.
  std::vector<Copy*> promised_;                             // Those with promises: a few.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_COPY_STORE_H_
