#include "core/residency/policy/admission.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/error_details.h"

namespace ditserve {
namespace {

constexpr absl::Duration kShortestRetry = absl::Seconds(1);

}  // namespace

Admission::Admission(PolicyState& state, Room& room, Idle& idle)
    : options_(state.options),
      now_(state.now),
      devices_(state.devices),
      budgets_(state.budgets),
      copies_(state.copies),
      sweeps_(state.sweeps),
      stored_bytes_(state.stored_bytes),
      room_(room),
      idle_(idle) {}

absl::Status Admission::CheckFits(Memory device, const RideBytes& bytes) const {
  const MemoryBudget& budget = budgets_[Index(device)];
  if (bytes.activations > budget.configured_bytes - budget.fixed_bytes - bytes.widest) {
    return WithShortage(absl::FailedPreconditionError(absl::StrCat(
                            "the request takes ", bytes.activations, " bytes of device memory for activations and ",
                            bytes.widest, " to stream the model through, beside the ", budget.fixed_bytes,
                            " that the server always takes; the device budget is ", budget.configured_bytes, " bytes")),
                        {device, budget.fixed_bytes + bytes.widest + bytes.activations, budget.configured_bytes});
  }
  const MemoryBudget& host = budgets_[Index(Memory::kHost)];
  if (bytes.host == 0 || bytes.host <= host.configured_bytes - host.fixed_bytes) return absl::OkStatus();
  return WithShortage(absl::FailedPreconditionError(absl::StrCat(
                          "the request takes ", bytes.host, " bytes of host memory beside the ", host.fixed_bytes,
                          " that the server always takes; the host budget is ", host.configured_bytes, " bytes")),
                      {Memory::kHost, host.fixed_bytes + bytes.host, host.configured_bytes});
}

// A place is had, on a device that lets nobody else in before, by whoever is let in at once; in a full queue by whoever
// is more urgent than the last of those who wait, which is sent away. Who has waited long is not.
absl::Status Admission::MakePlaceInQueue(const PolicyRider& rider, Actions& actions) {
  int waiting = 0;
  PolicyRider* last = nullptr;
  bool alone = true;
  for (PolicyRider& other : sweeps_.riders()) {
    if (other.stage != PolicyRider::Stage::kWaiting) continue;
    ++waiting;
    alone &= other.itinerary->device != rider.itinerary->device;
    if (last == nullptr || GoesBefore(*last, other)) last = &other;
  }
  if (waiting < options_.max_waiting) return absl::OkStatus();
  const DeviceState& device = devices_[Index(rider.itinerary->device) - 1];
  const auto has_room = [this](Memory memory, int64_t bytes) {
    const MemoryBudget& budget = budgets_[Index(memory)];
    const int64_t held_bytes = budget.used_bytes() - budget.cached_bytes - room_.EvictableBytes(memory);
    return bytes == 0 || held_bytes + bytes <= budget.allowed_bytes();
  };
  if (alone && FitsNow(device, BytesOf(rider)) && has_room(device.memory, rider.activation_bytes) &&
      has_room(Memory::kHost, rider.host_bytes)) {
    return absl::OkStatus();
  }
  const bool has_place = waiting <= options_.max_waiting;  // And was not just about to be let in beyond it.
  if (!has_place || last == nullptr || last->priority <= rider.priority || !GoesBefore(rider, *last)) {
    return QueueIsFull(device, waiting);
  }
  EndRider(*last, QueueIsFull(devices_[Index(last->itinerary->device) - 1], waiting), actions);
  return absl::OkStatus();
}

absl::Status Admission::QueueIsFull(const DeviceState& device, int waiting) const {
  const absl::Duration retry = std::max(UntilAPlaceIsFree(device), kShortestRetry);
  return WithRetryAfter(
      absl::ResourceExhaustedError(
          absl::StrCat(waiting, " requests are waiting already, the most the server lets wait: try again in about ",
                       absl::ToInt64Seconds(retry), " s")),
      retry);
}

absl::Duration Admission::UntilAPlaceIsFree(const DeviceState& device) const {
  const auto active = std::count_if(sweeps_.riders().begin(), sweeps_.riders().end(), [&](const PolicyRider& rider) {
    return rider.takes_place() && rider.itinerary->device == device.memory;
  });
  return device.estimates.usual_ride.value_or(kShortestRetry) / std::max<int64_t>(active, 1);
}

absl::Duration Admission::PredictedWait(const DeviceState& device, const RideBytes& bytes) const {
  const auto waiting = std::count_if(sweeps_.riders().begin(), sweeps_.riders().end(), [&](const PolicyRider& rider) {
    return rider.itinerary->device == device.memory && rider.stage == PolicyRider::Stage::kWaiting;
  });
  if (waiting == 0 && FitsNow(device, bytes)) return absl::ZeroDuration();
  return UntilAPlaceIsFree(device) * (waiting + 1);
}

bool Admission::FitsNow(const DeviceState& device, const RideBytes& bytes, const PolicyRider* rider) const {
  return FitsOnDevice(device, bytes) && FitsOnHost(device, bytes, rider);
}

bool Admission::FitsOnDevice(const DeviceState& device, const RideBytes& bytes) const {
  const MemoryBudget& budget = budgets_[Index(device.memory)];
  int admitted = 0;
  for (const PolicyRider& other : sweeps_.riders()) {
    admitted += other.takes_place() && other.itinerary->device == device.memory;
  }
  const int64_t widest = std::max(budget.widest_bytes, bytes.widest);
  return admitted < options_.max_riders &&
         budget.fixed_bytes + budget.activation_bytes + bytes.activations + widest <= budget.allowed_bytes();
}

bool Admission::FitsOnHost(const DeviceState& device, const RideBytes& bytes, const PolicyRider* rider) const {
  if (bytes.host == 0) return true;
  const MemoryBudget& host = budgets_[Index(Memory::kHost)];
  const int64_t taken = host.fixed_bytes + host.activation_bytes + HostBytesBefore(device, rider);
  return taken + bytes.host <= host.allowed_bytes();
}

// Whom pressure alone keeps out nobody holds up by riding.
int64_t Admission::HostBytesBefore(const DeviceState& device, const PolicyRider* rider) const {
  const MemoryBudget& host = budgets_[Index(Memory::kHost)];
  int64_t bytes = 0;
  for (const DeviceState& other : devices_) {
    const PolicyRider* const head = other.memory == device.memory ? nullptr : HeadOf(other);
    if (head == nullptr || !FitsOnDevice(other, BytesOf(*head))) continue;
    if (host.fixed_bytes + head->host_bytes > host.allowed_bytes()) continue;
    if (rider == nullptr || GoesBefore(*head, *rider)) bytes += head->host_bytes;
  }
  return bytes;
}

bool Admission::GoesBefore(const PolicyRider& a, const PolicyRider& b) const {
  const auto rank = [this](const PolicyRider& rider) {
    const bool patient = now_ - rider.joined < kPatience * options_.ageing;
    return std::tuple(patient, patient ? rider.priority : Priority::kInteractive, rider.joined, rider.id);
  };
  return rank(a) < rank(b);
}

PolicyRider* Admission::HeadOf(const DeviceState& device) const {
  PolicyRider* head = nullptr;
  for (PolicyRider& rider : sweeps_.riders()) {
    if (rider.stage != PolicyRider::Stage::kWaiting || rider.itinerary->device != device.memory) continue;
    if (head == nullptr || GoesBefore(rider, *head)) head = &rider;
  }
  return head;
}

void Admission::WatchHead(DeviceState& device) {
  const PolicyRider* head = HeadOf(device);
  if (head != nullptr && !FitsNow(device, BytesOf(*head), head)) head = nullptr;
  if (head == device.head) return;
  device.head = head;
  device.head_since = now_;
}

bool Admission::AdmitHeads(Actions& actions) {
  for (DeviceState& device : devices_) {
    device.asks = HeadOf(device);
    if (device.asks == nullptr) device.head_bytes = device.head_host_bytes = 0;
  }
  bool changed = false;
  for (;;) {
    DeviceState* first = nullptr;
    for (DeviceState& device : devices_) {
      if (device.asks == nullptr) continue;
      if (first == nullptr || GoesBefore(*device.asks, *first->asks)) first = &device;
    }
    if (first == nullptr) return changed;
    PolicyRider& head = *std::exchange(first->asks, nullptr);
    first->head_bytes = first->head_host_bytes = 0;
    if (!FitsNow(*first, BytesOf(head), &head)) continue;  // Nobody overtakes.
    changed |= TryAdmit(*first, head, actions);
  }
}

int64_t Admission::FreeBytes(Memory memory) const {
  const MemoryBudget& budget = budgets_[Index(memory)];
  const bool reuses = Reuses(memory);
  const int64_t room = budget.allowed_bytes() - budget.used_bytes() + (reuses ? budget.cached_bytes : 0);
  return reuses && now_ < budget.grows_from ? std::min(room, budget.cached_bytes) : room;
}

bool Admission::MakeRoom(Memory memory, int64_t bytes, bool dooms, Actions& actions) {
  const MemoryBudget& budget = budgets_[Index(memory)];
  const int64_t missing = bytes - FreeBytes(memory) - budget.leaving_bytes;
  const int64_t trimmable = Reuses(memory) ? 0 : budget.cached_bytes;
  if (missing > trimmable) {
    room_.Make(memory, missing, trimmable, -1, Taking::kAnything, nullptr, /*insist=*/true, actions);
  }
  if (!Reuses(memory)) room_.Trim(memory, missing, actions);
  const int64_t still = bytes - FreeBytes(memory) - budget.leaving_bytes;
  if (dooms && still > 0) room_.Doom(memory, still);
  return FreeBytes(memory) >= bytes;
}

bool Admission::TryAdmit(DeviceState& device, PolicyRider& rider, Actions& actions) {
  const size_t before = actions.size();
  const bool is_elder = device.elder.rider == &rider;
  const auto fits = [&] { return FreeBytes(device.memory) >= rider.activation_bytes; };
  const int64_t on_host_bytes = rider.host_bytes == 0 ? 0 : rider.host_bytes + HostBytesBefore(device, &rider);
  const auto fits_on_host = [&] { return on_host_bytes == 0 || FreeBytes(Memory::kHost) >= on_host_bytes; };
  // What comes free is the elder's.
  const bool spares = FreeBytes(device.memory) >= rider.activation_bytes + device.elder.bytes &&
                      !(Reuses(device.memory) && device.elder.drains);
  if (device.elder.rider != nullptr && !is_elder && !spares) return false;
  if (!fits() || !fits_on_host()) {
    if (device.planned_for != &rider) room_.Plan(device, &rider, actions);
    device.head_host_bytes = rider.host_bytes;
    if (!is_elder) device.head_bytes = rider.activation_bytes;
    const bool on_device = fits() || MakeRoom(device.memory, rider.activation_bytes, is_elder, actions);
    const bool on_host = fits_on_host() || MakeRoom(Memory::kHost, on_host_bytes, is_elder, actions);
    if (!on_device || !on_host) return actions.size() > before;
  }
  MemoryBudget& budget = Budget(device.memory);
  const int64_t bytes = rider.activation_bytes;
  const int64_t reused = Reuses(device.memory) ? room_.TakeCached(device.memory, bytes) : 0;
  budget.activation_bytes += bytes;
  Budget(Memory::kHost).activation_bytes += rider.host_bytes;
  device.head_bytes = device.head_host_bytes = 0;
  if (is_elder) room_.ReserveFor(device, nullptr);
  rider.admitted = true;  // It is beside those whose sweeps it may join.
  rider.stage = PolicyRider::Stage::kAdmitted;
  Admitted(device, rider, bytes - reused, actions);
  rider.after = ChooseSweep(rider);
  if (rider.after == nullptr) BeginRider(rider, actions);
  return true;
}

void Admission::Follow(PolicyRider& rider, const PolicyRider& before, Actions& actions) {
  rider.admitted = true;
  rider.stage = PolicyRider::Stage::kAdmitted;
  Admitted(devices_[Index(rider.itinerary->device) - 1], rider, /*grown_bytes=*/0, actions);
  if (before.passed_all()) return BeginRider(rider, actions);
  rider.after = &before;
}

void Admission::Admitted(DeviceState& device, PolicyRider& rider, int64_t grown_bytes, Actions& actions) {
  ++rider.itinerary->riders;
  actions.push_back(Admit{&rider, grown_bytes});
  UpdateWidest(device);
  room_.Plan(device, nullptr, actions);
  idle_.Ends();
}

void Admission::UpdateWidest(const DeviceState& device) {
  int64_t widest = 0;
  for (const PolicyRider& rider : sweeps_.riders()) {
    if (rider.admitted && rider.itinerary->device == device.memory) {
      widest = std::max(widest, rider.widest_bytes);
    }
  }
  Budget(device.memory).widest_bytes = widest;
}

void Admission::BeginRider(PolicyRider& rider, Actions& actions) {
  rider.stage = PolicyRider::Stage::kRiding;
  rider.after = nullptr;
  rider.begun = now_;
  if (!rider.is_lap) rider.place_since = now_;
  rider.debt = absl::ZeroDuration();
  std::optional<double> least;
  for (const PolicyRider& other : sweeps_.riders()) {
    if (&other == &rider || !other.riding() || other.itinerary->device != rider.itinerary->device) continue;
    least = std::min(least.value_or(other.attained_seconds()), other.attained_seconds());
  }
  rider.entered_at = least.value_or(0);  // As if it had always been there: no better, no worse.
  actions.push_back(Begin{&rider});
}

void Admission::BeginThoseAfter(const PolicyRider& rider, Actions& actions) {
  for (PolicyRider& next : sweeps_.riders()) {
    if (next.stage == PolicyRider::Stage::kAdmitted && next.after == &rider) BeginRider(next, actions);
  }
}

// After which rider it begins, by its policy; null: now. Never after one of a lower priority, which may itself wait
// long.
const PolicyRider* Admission::ChooseSweep(PolicyRider& rider) const {
  const PolicyRider* first = nullptr;  // Of those under way: the nearest to its end, and the farthest from it.
  const PolicyRider* last = nullptr;
  for (const PolicyRider& other : sweeps_.riders()) {
    if (!other.riding() || other.passed_all() || other.priority > rider.priority) continue;
    if (other.itinerary->weights != rider.itinerary->weights || other.itinerary->device != rider.itinerary->device) {
      continue;
    }
    if (first == nullptr || other.next > first->next) first = &other;
    if (last == nullptr || other.next < last->next) last = &other;
  }
  if (first == nullptr) return nullptr;
  const JoinSituation situation = SituationOf(rider, *last);
  rider.join_costs = PredictJoinCosts(situation);
  const bool cheaper = rider.join_costs->wait < rider.join_costs->immediate;
  rider.waited_for_sweep = rider.join == JoinPolicy::kWait ||
                           (rider.join == JoinPolicy::kAuto && cheaper && situation.move_passed > absl::ZeroDuration());
  return rider.waited_for_sweep ? first : nullptr;
}

JoinSituation Admission::SituationOf(const PolicyRider& rider, const PolicyRider& last) const {
  const WeightsId weights = rider.itinerary->weights;
  const std::vector<int64_t>& stored = stored_bytes_[static_cast<size_t>(weights)];
  const ModuleSet& computable = rider.itinerary->computable;
  double passed = 0, ahead = 0;
  for (ModuleIndex i = computable.NextMissing(0); i < computable.modules(); i = computable.NextMissing(i + 1)) {
    (i < last.next ? passed : ahead) += static_cast<double>(stored[static_cast<size_t>(i)]);
  }
  const Estimates& estimates = devices_[Index(rider.itinerary->device) - 1].estimates;
  const auto learned = estimates.computing_per_byte.find(weights);
  const double per_byte = learned == estimates.computing_per_byte.end() ? 0 : learned->second;
  const auto computing = [per_byte](const PolicyRider& each) {
    return absl::Seconds(per_byte * static_cast<double>(each.pass_bytes));
  };
  JoinSituation situation;
  situation.move_passed = absl::Seconds(passed / estimates.bytes_per_second());
  situation.move_ahead = absl::Seconds(ahead / estimates.bytes_per_second());
  situation.compute_own = computing(rider);
  for (const PolicyRider& other : sweeps_.riders()) {
    if (!other.riding() || other.itinerary->weights != weights || &other == &rider) continue;
    if (other.itinerary->device != rider.itinerary->device) continue;
    const double left = 1 - static_cast<double>(other.itinerary->place(other.next)) / other.itinerary->modules_taken();
    situation.compute_others += left * computing(other);
  }
  return situation;
}

void Admission::EndRider(PolicyRider& rider, const absl::Status& why, Actions& actions) {
  rider.ended = why;
  rider.after = nullptr;
  copies_.FulfilAll(rider.id);
  if (rider.pending || !rider.riding()) actions.push_back(End{&rider, why});
  rider.pending = false;
  rider.stage = PolicyRider::Stage::kEnding;
  BeginThoseAfter(rider, actions);
}

void Admission::TakeBack(PolicyRider& rider, int64_t lost_bytes, Actions& actions) {
  DeviceState& device = devices_[Index(rider.itinerary->device) - 1];
  copies_.FulfilAll(rider.id);
  rider.stage = PolicyRider::Stage::kWaiting;
  BeginThoseAfter(rider, actions);
  GiveUp(device, rider, lost_bytes, actions);
  UpdateWidest(device);
  room_.Plan(device, nullptr, actions);
}

void Admission::GiveUp(DeviceState& device, PolicyRider& rider, int64_t lost_bytes, Actions& actions) {
  rider.admitted = false;
  Budget(device.memory).activation_bytes -= rider.activation_bytes;
  Budget(Memory::kHost).activation_bytes -= rider.host_bytes;
  if (!device.in_host_memory) Budget(device.memory).cached_bytes += rider.activation_bytes - lost_bytes;
  --rider.itinerary->riders;
  idle_.Mark(rider, actions);
}

void Admission::Leave(PolicyRider& rider, int64_t lost_bytes, Actions& actions) {
  DeviceState& device = devices_[Index(rider.itinerary->device) - 1];
  copies_.FulfilAll(rider.id);
  rider.stage = PolicyRider::Stage::kEnding;
  if (device.planned_for == &rider) device.planned_for = nullptr;
  if (device.elder.rider == &rider) room_.ReserveFor(device, nullptr);
  BeginThoseAfter(rider, actions);
  const bool admitted = rider.admitted;
  if (admitted) GiveUp(device, rider, lost_bytes, actions);
  sweeps_.riders().remove_if([&rider](const PolicyRider& each) { return &each == &rider; });
  if (admitted) {
    UpdateWidest(device);
    room_.Plan(device, nullptr, actions);
  }
  if (sweeps_.riders().empty()) idle_.Begins();
}

}  // namespace ditserve
