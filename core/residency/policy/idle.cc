#include "core/residency/policy/idle.h"

#include <algorithm>
#include <limits>

namespace ditserve {

Idle::Idle(PolicyState& state, Room& room)
    : options_(state.options), now_(state.now), budgets_(state.budgets), copies_(state.copies), room_(room) {}

void Idle::Mark(const PolicyRider& left, Actions& actions) {
  const Itinerary& itinerary = *left.itinerary;
  for (ModuleIndex i = 0; i < itinerary.modules(); ++i) {
    for (size_t at = copies_.Of(itinerary.weights, i).size(); at-- > 0;) {
      Copy& copy = *copies_.Of(itinerary.weights, i)[at];
      const int stop = itinerary.StopOf(copy.key);
      if (stop >= 0 && !copy.streams) {
        // It rests where a rider that has used it leaves it.
        if (stop == itinerary.route(i).rest && i < left.next) copy.rests = true;
        // A copy over the limit was there for one operation only.
        const bool limited = stop == itinerary.route(i).limited && itinerary.limit_bytes;
        if (!limited || room_.DeviceUse(itinerary.device) <= *itinerary.limit_bytes) copy.idle_since = now_;
      }
      room_.DropUnlessWanted(copy, actions);
    }
  }
  next_ = std::min(next_, now_ + options_.idle_release);
}

void Idle::ReleaseCopies(Actions& actions) {
  if (next_ > now_) return;
  next_ = absl::InfiniteDuration();
  for (const auto& slot : copies_.slots()) {
    if (slot == nullptr || !slot->idle_since || slot->rests) continue;
    const absl::Duration due = *slot->idle_since + options_.idle_release;
    if (due > now_) {
      next_ = std::min(next_, due);
      continue;
    }
    slot->idle_since.reset();
    room_.DropUnlessWanted(*slot, actions);
  }
}

void Idle::Trim(Actions& actions) {
  if (!since_ || *since_ + options_.idle_release > now_) return;
  for (size_t i = 0; i < budgets_.size(); ++i) {
    room_.Trim(static_cast<Memory>(i), std::numeric_limits<int64_t>::max(), actions);
  }
}

}  // namespace ditserve
