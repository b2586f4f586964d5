#ifndef DITSERVE_CORE_RESIDENCY_POLICY_BUDGETS_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_BUDGETS_H_

#include <algorithm>
#include <cstdint>
#include <limits>

#include "absl/time/time.h"

namespace ditserve {

// One memory's bytes as the policy accounts for them, and what they may be.
struct MemoryBudget {
  static constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

  int64_t configured_bytes = 0;        // What was asked for. Alone decides what can never fit.
  int64_t lowered_bytes = kUnlimited;  // What others leave, at the moment.

  int64_t granule_bytes = 1;  // What goes back to the system is a multiple.

  int64_t fixed_bytes = 0;       // Taken for good: slots.
  int64_t activation_bytes = 0;  // Of those who are admitted.
  int64_t widest_bytes = 0;      // The largest module of those who are admitted, as operations read it.
  int64_t copy_bytes = 0;        // Loading ones too.
  int64_t streaming_bytes = 0;   // Of these, what was loaded for who passes.
  int64_t cached_bytes = 0;      // In no copy, kept for the next one: fresh memory costs more than used.
  int64_t leaving_bytes = 0;     // On their way back to the system.
  int64_t evictions = 0;         // Copies that gave way.
  absl::Duration grows_from;     // The system refused memory: until then the cache must do.

  int64_t used_bytes() const { return fixed_bytes + activation_bytes + copy_bytes + cached_bytes + leaving_bytes; }
  // What the admitted can't do without is in force even where a budget fell below it.
  int64_t floor_bytes() const { return fixed_bytes + activation_bytes + widest_bytes; }
  int64_t allowed_bytes() const { return std::min(configured_bytes, lowered_bytes); }
  int64_t force_bytes() const { return std::max(allowed_bytes(), floor_bytes()); }
  // What copies could still take, without anything going; less than 0 after a budget fell.
  int64_t RoomBytes(absl::Duration now) const {
    const int64_t room = force_bytes() - used_bytes() + cached_bytes;
    return now < grows_from ? std::min(room, cached_bytes) : room;
  }
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_BUDGETS_H_
