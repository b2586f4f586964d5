#include "core/residency/policy/room.h"

#include <algorithm>
#include <utility>

#include "core/residency/policy/keep_plan.h"

namespace ditserve {
namespace {

// Of the room that copies have, what is left to those that stream: enough for kAheadModules where there is plenty.
constexpr int kStreamingShare = 4;

}  // namespace

Room::Room(PolicyState& state)
    : now_(state.now), devices_(state.devices), budgets_(state.budgets), copies_(state.copies), sweeps_(state.sweeps) {}

int64_t Room::Bytes(Memory memory) const {
  const MemoryBudget& budget = budgets_[Index(memory)];
  const int64_t room = budget.RoomBytes(now_);
  const bool drains = !IsHost(memory) && devices_[Index(memory) - 1].elder.drains;
  return drains ? std::min(room, budget.cached_bytes) : room;
}

int64_t Room::BytesFor(Memory memory, bool urgent) const {
  int64_t room = Bytes(memory);
  if (memory == Memory::kHost) {
    for (const DeviceState& device : devices_) room -= device.head_host_bytes;
    return room;
  }
  const DeviceState& device = devices_[Index(memory) - 1];
  if (device.elder.rider != nullptr) room -= device.elder.bytes;
  if (!urgent) room -= device.head_bytes;
  return room;
}

int64_t Room::EvictableBytes(Memory memory) const {
  int64_t bytes = 0;
  for (const auto& copy : copies_.slots()) {
    if (copy != nullptr && copy->key.memory == memory && copy->IsEvictable()) bytes += copy->bytes;
  }
  return bytes;
}

int64_t Room::SettledBytes(Memory memory) const {
  int64_t bytes = 0;
  for (const auto& copy : copies_.slots()) {
    if (copy == nullptr || copy->key.memory != memory) continue;
    if (copy->ready() || copy->grown_bytes == 0) bytes += copy->bytes;
  }
  return bytes;
}

int64_t Room::DeviceUse(Memory memory) const {
  const MemoryBudget& budget = budgets_[Index(memory)];
  return budget.copy_bytes + budget.activation_bytes;
}

bool Room::Make(Memory memory, int64_t bytes, int64_t room_bytes, double next_use, Taking taking, const Copy* spare,
                bool insist, Actions& actions) {
  if (room_bytes >= bytes) return true;
  victims_.clear();
  for (const auto& copy : copies_.slots()) {
    if (copy == nullptr || copy->key.memory != memory || !copy->IsEvictable() || copy.get() == spare) continue;
    if (copy->may_stay && taking == Taking::kSpare) continue;
    const double use = sweeps_.NextUse(*copy);
    if (use > next_use) victims_.push_back({copy->may_stay, use, copy.get()});
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

void Room::Doom(Memory memory, int64_t bytes) {
  victims_.clear();
  for (const auto& copy : copies_.slots()) {
    if (copy == nullptr || copy->key.memory != memory) continue;
    if (copy->doomed) {
      bytes -= copy->bytes;
    } else {
      victims_.push_back({false, sweeps_.NextUse(*copy), copy.get()});
    }
  }
  std::sort(victims_.begin(), victims_.end(), [](const Victim& a, const Victim& b) {
    return a.next_use != b.next_use ? a.next_use > b.next_use : a.copy->id < b.copy->id;
  });
  for (const Victim& victim : victims_) {
    if (bytes <= 0) return;
    victim.copy->doomed = true;
    bytes -= victim.copy->bytes;
  }
}

void Room::ReserveFor(DeviceState& device, const PolicyRider* rider) {
  if (device.elder.rider == rider) return;
  // Those on the host go for whichever head is an elder and waits for memory there.
  const bool others_wait = std::any_of(devices_.begin(), devices_.end(), [&device](const DeviceState& other) {
    const PolicyRider* const elder = other.elder.rider;
    return &other != &device && elder != nullptr && !elder->admitted && elder->host_bytes > 0;
  });
  for (const auto& copy : copies_.slots()) {
    if (copy == nullptr) continue;
    if (copy->key.memory == device.memory || (IsHost(copy->key.memory) && !others_wait)) copy->doomed = false;
  }
  device.elder = {rider, 0};
  ++device.elder_turns;
}

int64_t Room::TakeCached(Memory memory, int64_t bytes) {
  MemoryBudget& budget = Budget(memory);
  // What the cache has less of lies in pieces. In a device's own memory those cost more than fresh memory does: so
  // there the cache stays below the largest copy where the budget is no reason to use it up.
  const bool in_host_memory = !IsHost(memory) && devices_[Index(memory) - 1].in_host_memory;
  const bool is_too_small = budget.cached_bytes < bytes && !in_host_memory;
  const bool grows = is_too_small && budget.used_bytes() + bytes <= budget.force_bytes();
  const int64_t reused = grows ? 0 : std::min(bytes, budget.cached_bytes);
  budget.cached_bytes -= reused;
  return reused;
}

Copy& Room::Place(const CopyKey& key, int64_t bytes, bool streams) {
  MemoryBudget& budget = Budget(key.memory);
  const int64_t reused = TakeCached(key.memory, bytes);
  budget.copy_bytes += bytes;
  if (streams) budget.streaming_bytes += bytes;
  Copy& copy = copies_.Add(key, bytes, bytes - reused);
  copy.streams = streams;
  copy.may_stay = MayStay(key);
  sweeps_.CopyCame(key);
  return copy;
}

void Room::Evict(Copy& copy, Actions& actions) {
  ++Budget(copy.key.memory).evictions;
  Drop(copy, actions);
}

void Room::Drop(Copy& copy, Actions& actions) {
  MemoryBudget& budget = Budget(copy.key.memory);
  budget.copy_bytes -= copy.bytes;
  if (copy.streams) budget.streaming_bytes -= copy.bytes;
  budget.cached_bytes += copy.bytes;
  actions.push_back(DropCopy{copy.id});
  const CopyKey key = copy.key;
  copies_.Remove(copy);
  sweeps_.CopyWent(key);
}

void Room::DropUnlessWanted(Copy& copy, Actions& actions) {
  if (!copy.IsEvictable()) return;
  if (!copy.doomed) {
    if (copy.rests || sweeps_.IsNeeded(copy) || IsKept(copy)) return;
    if (copy.idle_since && !sweeps_.IsClaimed(copy.key)) return;  // Until Idle lets it go.
  }
  Drop(copy, actions);
}

void Room::Trim(Memory memory, int64_t bytes, Actions& actions) {
  MemoryBudget& budget = Budget(memory);
  bytes = std::min(bytes, budget.cached_bytes);
  if (bytes <= 0) return;
  bytes = (bytes + budget.granule_bytes - 1) / budget.granule_bytes * budget.granule_bytes;
  budget.cached_bytes -= bytes;
  budget.leaving_bytes += bytes;
  actions.push_back(TrimCache{memory, bytes});
}

bool Room::Shrink(Memory memory, Actions& actions) {
  const MemoryBudget& budget = Budget(memory);
  const auto excess = [&budget] { return budget.used_bytes() - budget.leaving_bytes - budget.force_bytes(); };
  if (excess() <= 0) return false;
  const size_t before = actions.size();
  Trim(memory, excess(), actions);
  if (excess() > 0) {
    // Room for nothing: what is in use must go until it is what the budget allows.
    Make(memory, excess(), 0, -1, Taking::kAnything, nullptr, /*insist=*/true, actions);
    Trim(memory, excess(), actions);
  }
  return actions.size() > before;
}

void Room::Plan(DeviceState& device, const PolicyRider* admitting, Actions& actions) {
  int64_t widest = 0, widest_ridden = 0;
  std::vector<Itinerary*> itineraries;
  std::vector<KeepWish> wishes;
  for (Itinerary& itinerary : sweeps_.itineraries()) {
    if (itinerary.device != device.memory) continue;
    const bool rides = itinerary.riders > 0 || (admitting != nullptr && admitting->itinerary == &itinerary);
    itinerary.kept.clear();
    if (!rides) continue;
    widest = std::max(widest, itinerary.widest_bytes);
    if (itinerary.riders > 0) widest_ridden = std::max(widest_ridden, itinerary.widest_bytes);
    itineraries.push_back(&itinerary);
    wishes.push_back({itinerary.weights, &itinerary.routes});
  }
  const MemoryBudget& budget = budgets_[Index(device.memory)];
  const MemoryBudget& host = budgets_[Index(Memory::kHost)];
  const int64_t activations = budget.activation_bytes + (admitting != nullptr ? admitting->activation_bytes : 0);
  const int64_t room = budget.force_bytes() - budget.fixed_bytes - activations;
  const int64_t host_room = host.force_bytes() - host.fixed_bytes - host.activation_bytes -
                            (admitting != nullptr ? admitting->host_bytes : 0);
  const auto plan = [&](bool streams) {
    for (size_t i = 0; i < wishes.size(); ++i) {
      wishes[i].limited_bytes = KeepWish::kUnlimited;
      if (!itineraries[i]->limit_bytes) continue;
      wishes[i].limited_bytes = *itineraries[i]->limit_bytes - activations;
      if (streams) wishes[i].limited_bytes -= Sweeps::kLimitedAheadModules * itineraries[i]->widest_bytes;
    }
    const int64_t streaming =
        streams ? std::clamp(room / kStreamingShare, std::min(widest, room), Sweeps::kAheadModules * widest) : 0;
    return PlanKept(wishes, {room - streaming, host_room}, device.in_host_memory);
  };
  KeepPlan chosen = plan(/*streams=*/false);
  if (!chosen.complete) chosen = plan(/*streams=*/true);
  for (size_t i = 0; i < itineraries.size(); ++i) itineraries[i]->kept = std::move(chosen.kept[i]);
  device.planned_for = admitting;
  // The window of narrower modules is smaller.
  if (widest_ridden > 0 && widest_ridden < device.widest_bytes) Trim(device.memory, budget.cached_bytes, actions);
  device.widest_bytes = widest_ridden;
  for (const auto& copy : copies_.slots()) {
    if (copy == nullptr || (copy->key.memory != device.memory && !IsHost(copy->key.memory))) continue;
    copy->may_stay = MayStay(copy->key);
    if (copy->may_stay && std::exchange(copy->streams, false)) Budget(copy->key.memory).streaming_bytes -= copy->bytes;
    DropUnlessWanted(*copy, actions);
  }
}

bool Room::MayStay(const CopyKey& key) const {
  return std::any_of(sweeps_.itineraries().begin(), sweeps_.itineraries().end(), [&](const Itinerary& itinerary) {
    return itinerary.riders > 0 && itinerary.MayStay(key.module, itinerary.StopOf(key));
  });
}

bool Room::IsKept(const Copy& copy) const {
  return std::any_of(sweeps_.itineraries().begin(), sweeps_.itineraries().end(), [&](const Itinerary& itinerary) {
    const int stop = itinerary.StopOf(copy.key);
    if (itinerary.riders == 0 || !itinerary.MayStay(copy.key.module, stop)) return false;
    const bool limited = stop == itinerary.route(copy.key.module).limited && itinerary.limit_bytes;
    return !limited || DeviceUse(itinerary.device) <= *itinerary.limit_bytes;
  });
}

}  // namespace ditserve
