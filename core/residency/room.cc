// Room for copies: who gives way to whom, and what goes back to the system.
#include <algorithm>
#include <limits>
#include <utility>

#include "core/residency/policy.h"

namespace ditserve {

int64_t Policy::Room(Memory memory) const {
  const MemoryBudget& budget = budgets_[Index(memory)];
  const int64_t room = budget.RoomBytes(now_);
  const bool drains = !IsHost(memory) && devices_[Index(memory) - 1].elder.drains;
  return drains ? std::min(room, budget.cached_bytes) : room;
}

int64_t Policy::RoomFor(Memory memory, bool urgent) const {
  int64_t room = Room(memory);
  if (memory == Memory::kHost) return room;
  const Device& device = devices_[Index(memory) - 1];
  if (device.elder.rider != nullptr) room -= device.elder.bytes;
  if (!urgent) room -= device.head_bytes;
  return room;
}

bool Policy::MakeRoom(Memory memory, int64_t bytes, int64_t room_bytes, double next_use, Taking taking,
                      const Copy* spare, bool insist, Actions& actions) {
  if (room_bytes >= bytes) return true;
  victims_.clear();
  for (const auto& copy : copies_.slots()) {
    if (copy == nullptr || copy->key.memory != memory || !copy->IsEvictable() || copy.get() == spare) continue;
    const bool kept = MayStay(copy->key);
    if (kept && taking == Taking::kSpare) continue;
    const double use = sweeps_.NextUse(*copy);
    if (use > next_use) victims_.push_back({kept, use, copy.get()});
  }
  int64_t available = room_bytes;
  for (const Victim& victim : victims_) available += victim.copy->bytes;
  if (available < bytes && !insist) return false;
  std::sort(victims_.begin(), victims_.end(), [](const Victim& a, const Victim& b) {
    if (a.kept != b.kept) return b.kept;
    if (a.next_use != b.next_use) return a.next_use > b.next_use;
    return a.copy->id < b.copy->id;
  });
  for (const Victim& victim : victims_) {
    if (room_bytes >= bytes) break;
    room_bytes += victim.copy->bytes;
    Evict(*victim.copy, actions);
  }
  return room_bytes >= bytes;
}

bool Policy::MayStay(const CopyKey& key) const {
  return std::any_of(sweeps_.itineraries().begin(), sweeps_.itineraries().end(), [&](const Itinerary& itinerary) {
    return itinerary.riders > 0 && itinerary.MayStay(key.module, itinerary.StopOf(key));
  });
}

bool Policy::IsKept(const Copy& copy) const {
  return std::any_of(sweeps_.itineraries().begin(), sweeps_.itineraries().end(), [&](const Itinerary& itinerary) {
    const int stop = itinerary.StopOf(copy.key);
    if (itinerary.riders == 0 || !itinerary.MayStay(copy.key.module, stop)) return false;
    const bool limited = stop == itinerary.route(copy.key.module).limited && itinerary.limit_bytes;
    return !limited || DeviceUse(itinerary.device) <= *itinerary.limit_bytes;
  });
}

int64_t Policy::DeviceUse(Memory memory) const {
  const MemoryBudget& budget = budgets_[Index(memory)];
  return budget.copy_bytes + budget.activation_bytes;
}

void Policy::Evict(Copy& copy, Actions& actions) {
  ++evictions_[Index(copy.key.memory)];
  Drop(copy, actions);
}

void Policy::Drop(Copy& copy, Actions& actions) {
  MemoryBudget& budget = Budget(copy.key.memory);
  budget.copy_bytes -= copy.bytes;
  if (copy.streams) budget.streaming_bytes -= copy.bytes;
  budget.cached_bytes += copy.bytes;
  for (auto& [id, load] : loads_) {
    std::replace(load.targets.begin(), load.targets.end(), &copy, static_cast<Copy*>(nullptr));
  }
  actions.push_back(DropCopy{copy.id});
  const CopyKey key = copy.key;
  copies_.Remove(copy);
  sweeps_.CopyWent(key);
}

void Policy::DropUnlessWanted(Copy& copy, Actions& actions) {
  if (!copy.IsEvictable()) return;
  if (!copy.doomed) {
    if (copy.rests || sweeps_.IsNeeded(copy) || IsKept(copy)) return;
    if (copy.idle_since && !sweeps_.IsClaimed(copy.key)) return;  // Until ReleaseIdle.
  }
  Drop(copy, actions);
}

void Policy::Trim(Memory memory, int64_t bytes, Actions& actions) {
  MemoryBudget& budget = Budget(memory);
  bytes = std::min(bytes, budget.cached_bytes);
  if (bytes <= 0) return;
  bytes = (bytes + budget.granule_bytes - 1) / budget.granule_bytes * budget.granule_bytes;
  budget.cached_bytes -= bytes;
  budget.leaving_bytes += bytes;
  actions.push_back(TrimCache{memory, bytes});
}

bool Policy::Shrink(Memory memory, Actions& actions) {
  const MemoryBudget& budget = Budget(memory);
  const auto excess = [&budget] { return budget.used_bytes() - budget.leaving_bytes - budget.force_bytes(); };
  if (excess() <= 0) return false;
  const size_t before = actions.size();
  Trim(memory, excess(), actions);
  if (excess() > 0) {
    // Room for nothing: what is in use must go until it is what the budget allows.
    MakeRoom(memory, excess(), 0, -1, Taking::kAnything, nullptr, /*insist=*/true, actions);
    Trim(memory, excess(), actions);
  }
  return actions.size() > before;
}

void Policy::MarkIdle(const PolicyRider& left, Actions& actions) {
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
        if (!limited || DeviceUse(itinerary.device) <= *itinerary.limit_bytes) copy.idle_since = now_;
      }
      DropUnlessWanted(copy, actions);
    }
  }
  next_idle_ = std::min(next_idle_, now_ + options_.idle_release);
}

void Policy::ReleaseIdle(Actions& actions) {
  if (next_idle_ > now_) return;
  next_idle_ = absl::InfiniteDuration();
  for (const auto& slot : copies_.slots()) {
    if (slot == nullptr || !slot->idle_since || slot->rests) continue;
    const absl::Duration due = *slot->idle_since + options_.idle_release;
    if (due > now_) {
      next_idle_ = std::min(next_idle_, due);
      continue;
    }
    slot->idle_since.reset();
    DropUnlessWanted(*slot, actions);
  }
}

void Policy::TrimIdle(Actions& actions) {
  if (!idle_since_ || *idle_since_ + options_.idle_release > now_) return;
  for (size_t i = 0; i < budgets_.size(); ++i) {
    Trim(static_cast<Memory>(i), std::numeric_limits<int64_t>::max(), actions);
  }
}

}  // namespace ditserve
