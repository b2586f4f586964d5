#include "core/residency/policy/elder.h"

namespace ditserve {
namespace {

// Less than any next use.
constexpr double kAnyUse = -1;

}  // namespace

Elder::Elder(PolicyState& state, Room& room, Admission& admission, Loads& loads)
    : options_(state.options),
      now_(state.now),
      budgets_(state.budgets),
      copies_(state.copies),
      sweeps_(state.sweeps),
      room_(room),
      admission_(admission),
      loads_(loads) {}

bool Elder::Serve(DeviceState& device, Actions& actions) {
  admission_.WatchHead(device);
  PolicyRider* const elder = Find(device);
  room_.ReserveFor(device, elder);
  if (elder == nullptr) return false;
  if (!elder->admitted) {
    device.elder.bytes = elder->activation_bytes;
    return admission_.TryAdmit(device, *elder, actions);
  }
  return LoadFor(device, *elder, actions);
}

PolicyRider* Elder::Find(DeviceState& device) {
  PolicyRider* elder = nullptr;
  absl::Duration since;
  for (PolicyRider& rider : sweeps_.riders()) {
    if (rider.itinerary->device != device.memory) continue;
    const bool waits = rider.pending && (IsAged(rider) || device.elder.rider == &rider);
    const bool is_head = device.head == &rider && now_ - device.head_since >= options_.ageing;
    if (!waits && !is_head) continue;
    if (waits) {
      Copy* const copy = sweeps_.FindComputable(*rider.itinerary, rider.next);
      if (copy != nullptr && !copy->doomed) copies_.Promise(*copy, rider.id);
      if (copy != nullptr) continue;  // It is served: a copy that is doomed is promised, or goes and comes back.
    }
    const absl::Duration waits_since = is_head ? device.head_since : rider.since;
    if (elder == nullptr || waits_since < since) {
      elder = &rider;
      since = waits_since;
    }
  }
  return elder;
}

// Looks for room as if the source were not needed: a source that stands in its module's way gives way itself, and the
// module is read from a slower one, at last from the checkpoint.
bool Elder::LoadFor(DeviceState& device, PolicyRider& rider, Actions& actions) {
  const Route& route = rider.itinerary->route(rider.next);
  const int64_t bytes = route.compute_bytes;
  device.elder.bytes = bytes;
  const size_t before = actions.size();
  bool loading = false;
  Copy* source = loads_.FindSource(*rider.itinerary, rider.next, &loading);
  const MemoryBudget& budget = budgets_[Index(device.memory)];
  const auto drains = [&] { return rider.refused && budget.copy_bytes > 0 && budget.cached_bytes < bytes; };
  const auto room = [&] { return room_.Bytes(device.memory); };
  device.elder.drains = drains();
  const bool blocks = source != nullptr && source->key.memory == device.memory;
  if (!room_.Make(device.memory, bytes, room(), kAnyUse, Taking::kAnything, source, /*insist=*/true, actions) &&
      blocks && source->IsEvictable()) {
    room_.Evict(*source, actions);
    source = loads_.FindSource(*rider.itinerary, rider.next, &loading);
  }
  device.elder.drains = drains();
  if (room() < bytes) {
    room_.Doom(device.memory, bytes - room());
    return actions.size() > before;
  }
  if (!loads_.HasSlot(device)) return actions.size() > before;
  // The module can be made from a copy of it that was to go: there is room without that. No other is spared, nor what
  // goes for another device's elder: who else leases and reads what goes would keep it from going.
  if (source == nullptr) {
    for (Copy* copy : copies_.Of(rider.itinerary->weights, rider.next)) {
      if (copy->key.memory == device.memory) copy->doomed = false;
    }
    source = loads_.FindSource(*rider.itinerary, rider.next, &loading);
  }
  if (source == nullptr && loading) return actions.size() > before;  // Read once: it is made from what arrives.
  room_.ReserveFor(device, nullptr);
  const CopyKey key = {rider.itinerary->weights, rider.next, route.compute, device.memory};
  Copy& computable = room_.Place(key, bytes, /*streams=*/!room_.MayStay(key));
  loads_.Start(device, rider, rider.next, source, computable, actions);
  return true;
}

}  // namespace ditserve
