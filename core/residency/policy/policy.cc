#include "core/residency/policy/policy.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ditserve {

Policy::Policy(const PolicyOptions& options, const std::vector<PolicyDevice>& devices,
               const std::vector<int64_t>& fixed_bytes, const std::vector<int64_t>& budget_bytes,
               std::function<bool(FormId, FormId)> leads, const std::vector<int64_t>& granule_bytes) {
  state_.options = options;
  state_.leads = std::move(leads);
  for (size_t i = 0; i < devices.size(); ++i) {
    state_.devices.push_back({DeviceMemory(static_cast<int>(i)), devices[i].in_host_memory});
  }
  state_.budgets.resize(devices.size() + 1);
  for (size_t i = 0; i < state_.budgets.size(); ++i) {
    state_.budgets[i].fixed_bytes = fixed_bytes[i];
    state_.budgets[i].configured_bytes = budget_bytes[i];
    if (!granule_bytes.empty()) state_.budgets[i].granule_bytes = granule_bytes[i];
  }
}

Policy::Policy(const Policy& other, std::function<bool(FormId, FormId)> leads) {
  state_.options = other.state_.options;
  state_.leads = std::move(leads);
  state_.now = other.state_.now;
  for (const DeviceState& device : other.state_.devices) {
    state_.devices.push_back({device.memory, device.in_host_memory});
    state_.devices.back().estimates = device.estimates;
  }
  for (const MemoryBudget& budget : other.state_.budgets) {
    MemoryBudget& same = state_.budgets.emplace_back();
    same.configured_bytes = budget.configured_bytes;
    same.lowered_bytes = budget.lowered_bytes;
    same.granule_bytes = budget.granule_bytes;
    same.fixed_bytes = budget.fixed_bytes;
  }
  for (const std::vector<int64_t>& stored : other.state_.stored_bytes) AddWeights(stored);
  for (const auto& copy : other.copies_.slots()) {
    if (copy == nullptr || !copy->ready()) continue;
    Copy& same = room_.Place(copy->key, copy->bytes, copy->streams);
    copies_.SetReady(same);
    same.used = copy->used;
    same.rests = copy->rests;
    same.idle_since = copy->idle_since;
    if (copy->may_stay) same.idle_since = state_.now;  // As its riders leave it.
  }
  for (size_t i = 0; i < state_.budgets.size(); ++i) {
    state_.budgets[i].cached_bytes = other.state_.budgets[i].cached_bytes;
  }
  idle_.Begins();
}

WeightsId Policy::AddWeights(std::vector<int64_t> stored_bytes) {
  const WeightsId id = copies_.AddWeights(static_cast<int>(stored_bytes.size()));
  state_.stored_bytes.push_back(std::move(stored_bytes));
  return id;
}

void Policy::RemoveWeights(WeightsId weights, absl::Duration now, Actions& actions) {
  state_.now = now;
  for (ModuleIndex i = 0; i < copies_.modules(weights); ++i) {
    while (!copies_.Of(weights, i).empty()) room_.Drop(*copies_.Of(weights, i).front(), actions);
  }
  Decide(actions);
}

absl::StatusOr<PolicyRider*> Policy::Join(JoinRequest request, absl::Duration now, Actions& actions) {
  state_.now = now;
  PolicyRider rider;
  rider.itinerary = &sweeps_.Intern(request.weights, request.device, state_.device(request.device).in_host_memory,
                                    std::move(request.routes), request.limit_bytes);
  rider.next = rider.itinerary->NextTaken(0);
  rider.activation_bytes = rider.pass_bytes = request.activation_bytes;
  rider.host_bytes = request.host_bytes;
  rider.widest_bytes = rider.itinerary->widest_bytes;
  rider.priority = request.priority;
  rider.join = request.join;
  rider.joined = now;
  if (absl::Status fits = admission_.CheckFits(rider.itinerary->device, BytesOf(rider)); !fits.ok()) return fits;
  if (absl::Status place = admission_.MakePlaceInQueue(rider, actions); !place.ok()) return place;
  PolicyRider& joined = Add(std::move(rider));
  Decide(actions);
  return &joined;
}

absl::StatusOr<PolicyRider*> Policy::JoinLap(PolicyRider& before, std::vector<Route> routes,
                                             std::optional<ModuleIndex> undecided, absl::Duration now,
                                             Actions& actions) {
  state_.now = now;
  if (!before.ended.ok()) return before.ended;
  const Itinerary& itinerary = *before.itinerary;
  PolicyRider rider;
  rider.itinerary = &sweeps_.Intern(itinerary.weights, itinerary.device, itinerary.in_host_memory, std::move(routes),
                                    itinerary.limit_bytes);
  rider.next = rider.itinerary->NextTaken(0);
  rider.undecided = undecided;
  rider.pass_bytes = before.pass_bytes;
  rider.widest_bytes = std::max(before.widest_bytes, rider.itinerary->widest_bytes);
  rider.is_lap = rider.behind = true;
  rider.place_since = before.place_since;
  rider.priority = before.priority;
  rider.join = before.join;
  rider.joined = now;
  PolicyRider& joined = Add(std::move(rider));
  admission_.Follow(joined, before, actions);
  Decide(actions);
  return &joined;
}

PolicyRider& Policy::Add(PolicyRider rider) {
  for (const PolicyRider& other : sweeps_.riders()) {
    const bool alike = other.itinerary == rider.itinerary && other.pass_bytes == rider.pass_bytes;
    if (alike) rider.alike = other.alike;
  }
  rider.id = next_rider_++;
  return sweeps_.riders().emplace_back(std::move(rider));
}

absl::StatusOr<std::optional<Pin>> Policy::Acquire(PolicyRider& rider, ModuleIndex module, absl::Duration now,
                                                   Actions& actions) {
  state_.now = now;
  const bool passes_over = rider.next < module, decides = rider.undecided && module >= *rider.undecided;
  if (passes_over) PassOver(rider, module, actions);
  if (decides) rider.undecided.reset();
  if (!rider.ended.ok()) return rider.ended;
  Copy* const copy = sweeps_.FindComputable(*rider.itinerary, module);
  const bool is_there = copy != nullptr && copy->ready() && !copy->doomed;
  if (rider.load_error && rider.load_error->first == module && !is_there) return rider.load_error->second;
  // It is passed all the same, by a copy that was loaded for another.
  const bool forgets = rider.load_error && rider.load_error->first <= module;
  if (forgets) rider.load_error.reset();
  if (is_there) {
    std::optional<Pin> pin = Pin(*copy);
    if (passes_over || decides || forgets) Decide(actions);  // What can be loaded now is other than it was.
    return pin;
  }
  rider.pending = true;
  rider.since = now;
  rider.refused = false;
  rider.refusals = 0;
  Decide(actions);
  return std::optional<Pin>();
}

void Policy::PassOver(PolicyRider& rider, ModuleIndex module, Actions& actions) {
  const Itinerary& itinerary = *rider.itinerary;
  const ModuleIndex from = std::exchange(rider.next, module);
  rider.passed_over += itinerary.place(module) - itinerary.place(from);
  for (ModuleIndex i = from; i < module; ++i) {
    const std::vector<Copy*>& copies = copies_.Of(itinerary.weights, i);
    for (size_t at = copies.size(); at-- > 0;) room_.DropUnlessWanted(*copies[at], actions);
  }
}

void Policy::Release(PolicyRider& rider, Pin pin, absl::Duration took, absl::Duration now, Actions& actions) {
  state_.now = now;
  const CopyKey key = pin.copy()->key;
  pin.copy()->used = true;
  { const Pin ended = std::move(pin); }
  rider.computing += took;
  rider.alike->seconds += absl::ToDoubleSeconds(took);
  ++rider.alike->modules;
  if (rider.next == key.module) rider.next = rider.itinerary->NextTaken(key.module + 1);
  if (rider.passed_all()) {
    Estimates& estimates = state_.device(rider.itinerary->device).estimates;
    const bool goes_on = std::any_of(sweeps_.riders().begin(), sweeps_.riders().end(),
                                     [&](const PolicyRider& other) { return other.behind && other.after == &rider; });
    if (!goes_on) estimates.usual_ride = now - rider.place_since;
    if (rider.passed_over == 0) {
      sweeps_.LearnPace(*rider.itinerary, now - rider.begun);
      estimates.computing_per_byte[rider.itinerary->weights] =
          absl::ToDoubleSeconds(rider.computing) / static_cast<double>(std::max<int64_t>(rider.pass_bytes, 1));
    }
  }
  // It may have passed more than the one that it read.
  for (size_t i = copies_.Of(key.weights, key.module).size(); i-- > 0;) {
    room_.DropUnlessWanted(*copies_.Of(key.weights, key.module)[i], actions);
  }
  if (rider.passed_all()) admission_.BeginThoseAfter(rider, actions);
  Decide(actions);
}

void Policy::Cancel(PolicyRider& rider, const absl::Status& why, absl::Duration now, Actions& actions) {
  state_.now = now;
  if (!rider.ended.ok()) return;
  admission_.EndRider(rider, why, actions);
  Decide(actions);
}

void Policy::Leave(PolicyRider& rider, absl::Duration now, Actions& actions, int64_t lost_bytes, PolicyRider* next) {
  state_.now = now;
  if (next != nullptr) {
    next->activation_bytes = std::exchange(rider.activation_bytes, 0);
    next->host_bytes = std::exchange(rider.host_bytes, 0);
    next->behind = false;
  }
  admission_.Leave(rider, lost_bytes, actions);
  Decide(actions);
}

void Policy::Enqueued(LoadId load, absl::Duration now, Actions& actions) {
  state_.now = now;
  loads_.SetReady(load);
  Decide(actions);
}

void Policy::Finished(LoadId load, absl::Duration now, Actions& actions) {
  state_.now = now;
  loads_.Finish(load, actions);
  Decide(actions);
}

void Policy::Failed(LoadId load, const absl::Status& why, absl::Duration now, Actions& actions) {
  state_.now = now;
  const CopyKey key = loads_.at(load).targets.back();
  ForEachUser(key, [&](PolicyRider& rider) {
    if (rider.pending && rider.next == key.module) {
      admission_.EndRider(rider, why, actions);
    } else {
      if (!rider.load_error || rider.load_error->first > key.module) rider.load_error.emplace(key.module, why);
    }
  });
  loads_.TakeBack(load, actions);
  Decide(actions);
}

void Policy::Refused(LoadId load, Memory memory, const std::vector<int64_t>& lost_bytes, const absl::Status& why,
                     absl::Duration now, Actions& actions) {
  state_.now = now;
  const CopyKey key = loads_.at(load).targets.back();
  const int64_t bytes = loads_.at(load).bytes;
  const RiderId asked = loads_.at(load).rider;
  loads_.TakeBack(load, actions);
  MemoryBudget& budget = state_.budgets[Index(memory)];
  for (size_t i = 0; i < state_.budgets.size(); ++i) state_.budgets[i].cached_bytes -= lost_bytes[i];
  budget.grows_from = now + state_.options.growth_pause;
  if (key.memory == memory) {
    const bool nothing_left = bytes > budget.cached_bytes + room_.SettledBytes(memory);
    ForEachUser(key, [&](PolicyRider& rider) {
      if (!rider.pending || rider.next != key.module) return;
      rider.refused = true;
      if (rider.id != asked || !nothing_left) return;  // Once it is gone there may be enough for the others.
      if (++rider.refusals >= kMostRefusals) admission_.EndRider(rider, why, actions);
    });
  }
  Decide(actions);
}

void Policy::Refused(PolicyRider& rider, int64_t lost_bytes, const absl::Status& why, absl::Duration now,
                     Actions& actions) {
  state_.now = now;
  const Memory memory = rider.itinerary->device;
  admission_.TakeBack(rider, lost_bytes, actions);
  MemoryBudget& budget = state_.budgets[Index(memory)];
  budget.grows_from = now + state_.options.growth_pause;
  // What others compute in comes free when they end.
  const int64_t left = budget.cached_bytes + room_.SettledBytes(memory) + budget.activation_bytes;
  const bool ends = rider.activation_bytes > left && ++rider.refusals >= kMostRefusals;
  absl::Status fits = admission_.CheckFits(memory, BytesOf(rider));  // A budget may have fallen since it was admitted.
  if (ends || !fits.ok()) admission_.EndRider(rider, ends ? why : fits, actions);
  Decide(actions);
}

void Policy::Freed(Memory memory, int64_t bytes, absl::Duration now, Actions& actions) {
  state_.now = now;
  state_.budgets[Index(memory)].leaving_bytes -= bytes;
  Decide(actions);
}

void Policy::SetBudget(Memory memory, int64_t bytes, absl::Duration now, Actions& actions) {
  state_.now = now;
  state_.budgets[Index(memory)].configured_bytes = bytes;
  for (PolicyRider& rider : sweeps_.riders()) {
    if (rider.admitted || !rider.ended.ok()) continue;
    if (absl::Status fits = admission_.CheckFits(rider.itinerary->device, BytesOf(rider)); !fits.ok())
      admission_.EndRider(rider, fits, actions);
  }
  for (DeviceState& device : state_.devices) room_.Plan(device, nullptr, actions);
  Decide(actions);
}

void Policy::SetPressure(Memory memory, int64_t bytes, absl::Duration now, Actions& actions) {
  state_.now = now;
  state_.budgets[Index(memory)].lowered_bytes = bytes;
  for (DeviceState& device : state_.devices) room_.Plan(device, nullptr, actions);
  Decide(actions);
}

void Policy::Tick(absl::Duration now, Actions& actions) {
  state_.now = now;
  Decide(actions);
}

void Policy::Decide(Actions& actions) {
  idle_.ReleaseCopies(actions);
  bool changed = true;
  while (changed) {
    changed = false;
    for (size_t i = 0; i < state_.budgets.size(); ++i) changed |= room_.Shrink(static_cast<Memory>(i), actions);
    for (DeviceState& device : state_.devices) changed |= elder_.Serve(device, actions);
    changed |= admission_.AdmitHeads(actions);
    for (DeviceState& device : state_.devices) changed |= loads_.StartNext(device, actions);
    changed |= GrantPending(actions);
  }
  idle_.Trim(actions);
  next_tick_ = FindNextTick();
}

bool Policy::GrantPending(Actions& actions) {
  bool granted = false;
  for (PolicyRider& rider : sweeps_.riders()) {
    if (!rider.pending) continue;
    Copy* const copy = sweeps_.FindComputable(*rider.itinerary, rider.next);
    if (copy == nullptr || !copy->ready() || (copy->doomed && !copy->IsPromisedTo(rider.id))) continue;
    copies_.FulfilAll(rider.id);
    rider.pending = false;
    rider.debt += state_.now - rider.since;
    actions.push_back(Grant{&rider, Pin(*copy)});
    granted = true;
  }
  return granted;
}

void Policy::ForEachUser(const CopyKey& key, const std::function<void(PolicyRider&)>& visit) {
  bool riding = false;
  for (const PolicyRider& rider : sweeps_.riders()) riding |= rider.riding() && Sweeps::Needs(rider, key);
  for (PolicyRider& rider : sweeps_.riders()) {
    if (Sweeps::Needs(rider, key) && rider.riding() == riding) visit(rider);
  }
}

absl::Duration Policy::FindNextTick() const {
  absl::Duration next = absl::InfiniteDuration();
  const auto at = [&](absl::Duration time) {
    if (time > state_.now) next = std::min(next, time);
  };
  bool waits = false;
  for (const PolicyRider& rider : sweeps_.riders()) {
    if (rider.pending) at(rider.since + state_.options.ageing - rider.debt);
    if (rider.stage == PolicyRider::Stage::kWaiting) at(rider.joined + Admission::kPatience * state_.options.ageing);
    waits |= rider.pending || rider.stage == PolicyRider::Stage::kWaiting;
  }
  for (const DeviceState& device : state_.devices) {
    if (device.head != nullptr) at(device.head_since + state_.options.ageing);
  }
  for (const MemoryBudget& budget : state_.budgets) {
    if (waits) at(budget.grows_from);
  }
  at(idle_.copies_due());
  at(idle_.trim_due());
  return next;
}

int64_t Policy::AdmittedTo(Memory device) const {
  return std::count_if(sweeps_.riders().begin(), sweeps_.riders().end(), [device](const PolicyRider& rider) {
    return rider.admitted && rider.itinerary->device == device;
  });
}

absl::Status Policy::Check() const {
  std::vector<int64_t> bytes(state_.budgets.size()), streaming(state_.budgets.size());
  std::vector<int64_t> activations(state_.budgets.size()), widest(state_.budgets.size());
  for (const auto& copy : copies_.slots()) {
    if (copy == nullptr) continue;
    bytes[Index(copy->key.memory)] += copy->bytes;
    if (copy->streams) streaming[Index(copy->key.memory)] += copy->bytes;
    if (copy->may_stay != room_.MayStay(copy->key)) {
      return absl::InternalError(absl::StrCat("copy ", copy->id, " may ", copy->may_stay ? "not " : "", "stay"));
    }
    if (copy->streams && copy->may_stay) {
      return absl::InternalError(absl::StrCat("copy ", copy->id, " stays, and takes of the window"));
    }
  }
  for (const PolicyRider& rider : sweeps_.riders()) {
    if (!rider.admitted) continue;
    const size_t at = Index(rider.itinerary->device);
    activations[at] += rider.activation_bytes;
    activations[Index(Memory::kHost)] += rider.host_bytes;
    widest[at] = std::max(widest[at], rider.widest_bytes);
  }
  for (size_t i = 0; i < state_.budgets.size(); ++i) {
    const MemoryBudget& budget = state_.budgets[i];
    if (budget.copy_bytes != bytes[i] || budget.streaming_bytes != streaming[i] ||
        budget.activation_bytes != activations[i] || budget.widest_bytes != widest[i] || budget.cached_bytes < 0 ||
        budget.leaving_bytes < 0) {
      return absl::InternalError(absl::StrCat("memory ", i, ": copies ", budget.copy_bytes, " of ", bytes[i],
                                              ", streaming ", budget.streaming_bytes, " of ", streaming[i],
                                              ", activations ", budget.activation_bytes, " of ", activations[i],
                                              ", widest ", budget.widest_bytes, " of ", widest[i], ", cached ",
                                              budget.cached_bytes, ", leaving ", budget.leaving_bytes));
    }
  }
  for (const Itinerary& itinerary : sweeps_.itineraries()) {
    for (ModuleIndex i = 0; i < itinerary.modules(); ++i) {
      const bool computable = !itinerary.route(i).taken() || sweeps_.FindComputable(itinerary, i) != nullptr;
      if (itinerary.computable.Has(i) != computable) {
        return absl::InternalError(
            absl::StrCat("itinerary ", itinerary.id, ": module ", i, " is taken for what it is not"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace ditserve
