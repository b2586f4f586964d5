#include "core/residency/policy.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ditserve {

Policy::Policy(const PolicyOptions& options, std::vector<PolicyDevice> devices, std::vector<int64_t> fixed_bytes,
               std::vector<int64_t> budget_bytes, std::function<bool(FormId, FormId)> leads,
               const std::vector<int64_t>& granule_bytes)
    : options_(options),
      leads_(std::move(leads)),
      budgets_(devices.size() + 1),
      sweeps_(copies_),
      evictions_(devices.size() + 1) {
  for (size_t i = 0; i < devices.size(); ++i) {
    devices_.push_back({DeviceMemory(static_cast<int>(i)), devices[i].in_host_memory});
  }
  for (size_t i = 0; i < budgets_.size(); ++i) {
    budgets_[i].fixed_bytes = fixed_bytes[i];
    budgets_[i].configured_bytes = budget_bytes[i];
    if (!granule_bytes.empty()) budgets_[i].granule_bytes = granule_bytes[i];
  }
}

WeightsId Policy::AddWeights(std::vector<int64_t> stored_bytes) {
  const WeightsId id = copies_.AddWeights(static_cast<int>(stored_bytes.size()));
  stored_bytes_.push_back(std::move(stored_bytes));
  return id;
}

void Policy::RemoveWeights(WeightsId weights, Actions& actions) {
  for (ModuleIndex i = 0; i < copies_.modules(weights); ++i) {
    while (!copies_.Of(weights, i).empty()) Drop(*copies_.Of(weights, i).front(), actions);
  }
  Decide(actions);
}

absl::StatusOr<PolicyRider*> Policy::Join(JoinRequest request, absl::Duration now, Actions& actions) {
  now_ = now;
  PolicyRider rider;
  rider.id = next_rider_;
  rider.itinerary = &sweeps_.Intern(request.weights, request.device, At(request.device).in_host_memory,
                                    std::move(request.routes), request.limit_bytes);
  rider.activation_bytes = request.activation_bytes;
  rider.priority = request.priority;
  rider.join = request.join;
  rider.joined = now;
  if (absl::Status fits = CheckFits(rider); !fits.ok()) return fits;
  if (absl::Status place = MakePlaceInQueue(rider, actions); !place.ok()) return place;
  ++next_rider_;
  PolicyRider& joined = sweeps_.riders().emplace_back(std::move(rider));
  Decide(actions);
  return &joined;
}

absl::StatusOr<std::optional<Pin>> Policy::Acquire(PolicyRider& rider, ModuleIndex module, absl::Duration now,
                                                   Actions& actions) {
  now_ = now;
  rider.next = module;
  if (!rider.ended.ok()) return rider.ended;
  // It was passed all the same, by a copy that was loaded for another.
  if (rider.load_error && rider.load_error->first < module) rider.load_error.reset();
  if (rider.load_error && rider.load_error->first == module) return rider.load_error->second;
  Copy* const copy = sweeps_.FindComputable(*rider.itinerary, module);
  if (copy != nullptr && copy->ready() && !copy->doomed) return std::optional<Pin>(Pin(*copy));
  rider.pending = true;
  rider.since = now;
  rider.refused = false;
  rider.refusals = 0;
  Decide(actions);
  return std::optional<Pin>();
}

void Policy::Release(PolicyRider& rider, Pin pin, absl::Duration took, absl::Duration now, Actions& actions) {
  now_ = now;
  const CopyKey key = pin.copy()->key;
  pin.copy()->used = true;
  { const Pin ended = std::move(pin); }
  rider.attained += took;
  rider.computing += took;
  if (rider.next == key.module) ++rider.next;
  if (rider.passed_all()) {
    estimates_.usual_ride = now - rider.begun;
    sweeps_.LearnPace(*rider.itinerary, now - rider.begun);
    estimates_.computing_per_byte[rider.itinerary->weights] =
        absl::ToDoubleSeconds(rider.computing) / static_cast<double>(std::max<int64_t>(rider.activation_bytes, 1));
  }
  // It may have passed more than the one that it read.
  for (size_t i = copies_.Of(key.weights, key.module).size(); i-- > 0;) {
    DropUnlessWanted(*copies_.Of(key.weights, key.module)[i], actions);
  }
  if (rider.passed_all()) BeginThoseAfter(rider, actions);
  Decide(actions);
}

void Policy::Cancel(PolicyRider& rider, const absl::Status& why, absl::Duration now, Actions& actions) {
  now_ = now;
  if (!rider.ended.ok()) return;
  EndRider(rider, why, actions);
  Decide(actions);
}

// Whoever waited for something is told; who computes is told when it acquires next.
void Policy::EndRider(PolicyRider& rider, const absl::Status& why, Actions& actions) {
  rider.ended = why;
  rider.after = nullptr;
  copies_.FulfilAll(rider.id);
  if (rider.pending || !rider.riding()) actions.push_back(End{&rider, why});
  rider.pending = false;
  rider.stage = PolicyRider::Stage::kEnding;
  BeginThoseAfter(rider, actions);
}

void Policy::Leave(PolicyRider& rider, absl::Duration now, Actions& actions) {
  now_ = now;
  Device& device = At(rider.itinerary->device);
  copies_.FulfilAll(rider.id);
  rider.stage = PolicyRider::Stage::kEnding;
  if (device.planned_for == &rider) device.planned_for = nullptr;
  BeginThoseAfter(rider, actions);
  if (rider.admitted) {
    Budget(device.memory).activation_bytes -= rider.activation_bytes;
    --rider.itinerary->riders;
    MarkIdle(rider, actions);
  }
  const bool admitted = rider.admitted;
  sweeps_.riders().remove_if([&rider](const PolicyRider& each) { return &each == &rider; });
  if (admitted) {
    UpdateWidest(device);
    Plan(device, nullptr, actions);
  }
  if (sweeps_.riders().empty()) idle_since_ = now;
  Decide(actions);
}

void Policy::Enqueued(LoadId load, absl::Duration now, Actions& actions) {
  now_ = now;
  Load& arrived = loads_.at(load);
  arrived.enqueued = true;
  for (Copy* target : arrived.targets) copies_.SetReady(*target);
  Decide(actions);
}

void Policy::Finished(LoadId load, absl::Duration now, Actions& actions) {
  now_ = now;
  Load finished = std::move(loads_.at(load));
  loads_.erase(load);
  --At(finished.device).loads;
  Copy* const source = finished.source.copy();
  finished.source = Pin();
  for (Copy* target : finished.targets) {
    if (target != nullptr) DropUnlessWanted(*target, actions);
  }
  if (source != nullptr) DropUnlessWanted(*source, actions);
  Decide(actions);
}

void Policy::Failed(LoadId load, const absl::Status& why, absl::Duration now, Actions& actions) {
  now_ = now;
  const CopyKey key = loads_.at(load).targets.back()->key;
  ForEachUser(key, [&](PolicyRider& rider) {
    if (rider.pending && rider.next == key.module) {
      EndRider(rider, why, actions);
    } else {
      if (!rider.load_error || rider.load_error->first > key.module) rider.load_error.emplace(key.module, why);
    }
  });
  TakeBack(load, actions);
  Decide(actions);
}

void Policy::Refused(LoadId load, Memory memory, const std::vector<int64_t>& lost_bytes, const absl::Status& why,
                     absl::Duration now, Actions& actions) {
  now_ = now;
  const CopyKey key = loads_.at(load).targets.back()->key;
  const int64_t bytes = loads_.at(load).targets.back()->bytes;
  TakeBack(load, actions);
  MemoryBudget& budget = Budget(memory);
  for (size_t i = 0; i < budgets_.size(); ++i) budgets_[i].cached_bytes -= lost_bytes[i];
  budget.grows_from = now + options_.growth_pause;
  if (key.memory == memory) {
    const bool nothing_left = bytes > budget.cached_bytes + SettledBytes(memory);
    ForEachUser(key, [&](PolicyRider& rider) {
      if (!rider.pending || rider.next != key.module) return;
      rider.refused = true;
      if (nothing_left && ++rider.refusals >= kMostRefusals) EndRider(rider, why, actions);
    });
  }
  Decide(actions);
}

void Policy::TakeBack(LoadId load, Actions& actions) {
  Load failed = std::move(loads_.at(load));
  loads_.erase(load);
  --At(failed.device).loads;
  for (Copy* target : failed.targets) {
    Drop(*target, actions);
  }
  Copy* const source = failed.source.copy();
  failed.source = Pin();
  if (source != nullptr) DropUnlessWanted(*source, actions);
}

int64_t Policy::EvictableBytes(Memory memory) const {
  int64_t bytes = 0;
  for (const auto& copy : copies_.slots()) {
    if (copy != nullptr && copy->key.memory == memory && copy->IsEvictable()) bytes += copy->bytes;
  }
  return bytes;
}

void Policy::Freed(Memory memory, int64_t bytes, absl::Duration now, Actions& actions) {
  now_ = now;
  Budget(memory).leaving_bytes -= bytes;
  Decide(actions);
}

void Policy::SetBudget(Memory memory, int64_t bytes, absl::Duration now, Actions& actions) {
  now_ = now;
  Budget(memory).configured_bytes = bytes;
  for (PolicyRider& rider : sweeps_.riders()) {
    if (rider.admitted || !rider.ended.ok()) continue;
    if (absl::Status fits = CheckFits(rider); !fits.ok()) EndRider(rider, fits, actions);
  }
  for (Device& device : devices_) Plan(device, nullptr, actions);
  Decide(actions);
}

void Policy::SetPressure(Memory memory, int64_t bytes, absl::Duration now, Actions& actions) {
  now_ = now;
  Budget(memory).lowered_bytes = bytes;
  for (Device& device : devices_) Plan(device, nullptr, actions);
  Decide(actions);
}

void Policy::Tick(absl::Duration now, Actions& actions) {
  now_ = now;
  Decide(actions);
}

void Policy::Decide(Actions& actions) {
  ReleaseIdle(actions);
  bool changed = true;
  while (changed) {
    changed = false;
    for (size_t i = 0; i < budgets_.size(); ++i) changed |= Shrink(static_cast<Memory>(i), actions);
    for (Device& device : devices_) {
      changed |= ServeElder(device, actions);
      changed |= AdmitHead(device, actions);
      changed |= LoadNext(device, actions);
    }
    changed |= GrantPending(actions);
  }
  TrimIdle(actions);
}

bool Policy::GrantPending(Actions& actions) {
  bool granted = false;
  for (PolicyRider& rider : sweeps_.riders()) {
    if (!rider.pending) continue;
    Copy* const copy = sweeps_.FindComputable(*rider.itinerary, rider.next);
    if (copy == nullptr || !copy->ready() || (copy->doomed && !copy->IsPromisedTo(rider.id))) continue;
    copies_.FulfilAll(rider.id);
    rider.pending = false;
    rider.debt += now_ - rider.since;
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

absl::Duration Policy::NextTick() const {
  absl::Duration next = absl::InfiniteDuration();
  const auto at = [&](absl::Duration time) {
    if (time > now_) next = std::min(next, time);
  };
  bool waits = false;
  for (const PolicyRider& rider : sweeps_.riders()) {
    if (rider.pending) at(rider.since + options_.ageing - rider.debt);
    if (rider.stage == PolicyRider::Stage::kWaiting) at(rider.joined + kPatienceInQueue * options_.ageing);
    waits |= rider.pending || rider.stage == PolicyRider::Stage::kWaiting;
  }
  for (const Device& device : devices_) {
    if (device.head != nullptr) at(device.head_since + options_.ageing);
  }
  for (const MemoryBudget& budget : budgets_) {
    if (waits) at(budget.grows_from);
  }
  at(next_idle_);
  if (idle_since_) at(*idle_since_ + options_.idle_release);
  return next;
}

int64_t Policy::SettledBytes(Memory memory) const {
  int64_t bytes = 0;
  for (const auto& copy : copies_.slots()) {
    if (copy == nullptr || copy->key.memory != memory) continue;
    if (copy->ready() || copy->grown_bytes == 0) bytes += copy->bytes;
  }
  return bytes;
}

int64_t Policy::AdmittedTo(Memory device) const {
  return std::count_if(sweeps_.riders().begin(), sweeps_.riders().end(), [device](const PolicyRider& rider) {
    return rider.admitted && rider.itinerary->device == device;
  });
}

absl::Status Policy::Check() const {
  std::vector<int64_t> bytes(budgets_.size()), streaming(budgets_.size());
  std::vector<int64_t> activations(budgets_.size()), widest(budgets_.size());
  for (const auto& copy : copies_.slots()) {
    if (copy == nullptr) continue;
    bytes[Index(copy->key.memory)] += copy->bytes;
    if (copy->streams) streaming[Index(copy->key.memory)] += copy->bytes;
  }
  for (const PolicyRider& rider : sweeps_.riders()) {
    if (!rider.admitted) continue;
    const size_t at = Index(rider.itinerary->device);
    activations[at] += rider.activation_bytes;
    widest[at] = std::max(widest[at], rider.itinerary->widest_bytes);
  }
  for (size_t i = 0; i < budgets_.size(); ++i) {
    const MemoryBudget& budget = budgets_[i];
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
      if (itinerary.computable.Has(i) != (sweeps_.FindComputable(itinerary, i) != nullptr)) {
        return absl::InternalError(
            absl::StrCat("itinerary ", itinerary.id, ": module ", i, " is taken for what it is not"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace ditserve
