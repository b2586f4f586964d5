#include "tests/simulation/queue.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"

namespace ditserve::simulation {
namespace {

// A rider that waited for admission for so many times the ageing time is admitted by arrival alone.
constexpr int kPatienceInQueue = 8;

}  // namespace

bool Queue::IsPatient(const PolicyRider& rider, absl::Duration now) const {
  return now - rider.joined < kPatienceInQueue * scenario_.options.ageing;
}

bool Queue::GoesBefore(const PolicyRider& a, const PolicyRider& b, absl::Duration now) const {
  const auto rank = [&](const PolicyRider& rider) {
    const bool patient = IsPatient(rider, now);
    return std::tuple(patient, patient ? rider.priority : Priority::kInteractive, rider.joined, rider.id);
  };
  return rank(a) < rank(b);
}

const PolicyRider* Queue::Head(Memory device, absl::Duration now) const {
  const PolicyRider* head = nullptr;
  for (const PolicyRider& rider : policy_.sweeps().riders()) {
    if (rider.itinerary->device != device || rider.stage != PolicyRider::Stage::kWaiting) continue;
    if (head == nullptr || GoesBefore(rider, *head, now)) head = &rider;
  }
  return head;
}

bool Queue::FitsOnDevice(const PolicyRider& rider) const {
  const Memory device = rider.itinerary->device;
  int admitted = 0;
  for (const PolicyRider& other : policy_.sweeps().riders()) {
    admitted += other.itinerary->device == device && other.takes_place();
  }
  const MemoryBudget& budget = policy_.budget(device);
  const int64_t widest = std::max(budget.widest_bytes, rider.itinerary->widest_bytes);
  const int64_t bytes = budget.fixed_bytes + budget.activation_bytes + rider.activation_bytes + widest;
  return admitted < scenario_.options.max_riders && bytes <= budget.allowed_bytes();
}

bool Queue::MayWaitForHost(const PolicyRider& rider) const {
  const MemoryBudget& host = policy_.budget(Memory::kHost);
  return FitsOnDevice(rider) && host.fixed_bytes + rider.host_bytes <= host.allowed_bytes();
}

std::vector<const PolicyRider*> Queue::WaitForHostBefore(const PolicyRider& rider, absl::Duration now) const {
  std::vector<const PolicyRider*> heads;
  for (size_t i = 0; i < scenario_.devices.size(); ++i) {
    const Memory device = DeviceMemory(static_cast<int>(i));
    const PolicyRider* const head = device == rider.itinerary->device ? nullptr : Head(device, now);
    if (head != nullptr && MayWaitForHost(*head) && GoesBefore(*head, rider, now)) heads.push_back(head);
  }
  return heads;
}

const PolicyRider* Queue::HeadThatFits(Memory device, absl::Duration now) const {
  const PolicyRider* const head = Head(device, now);
  if (head == nullptr || !FitsOnDevice(*head)) return nullptr;
  if (head->host_bytes == 0) return head;
  const MemoryBudget& host = policy_.budget(Memory::kHost);
  int64_t bytes = host.fixed_bytes + host.activation_bytes + head->host_bytes;
  for (const PolicyRider* const other : WaitForHostBefore(*head, now)) bytes += other->host_bytes;
  return bytes <= host.allowed_bytes() ? head : nullptr;
}

absl::Status Queue::CheckAdmitted(const PolicyRider& rider, absl::Duration now) const {
  if (rider.is_lap) return absl::OkStatus();
  int admitted = 0;
  for (const PolicyRider& other : policy_.sweeps().riders()) {
    if (other.itinerary->device != rider.itinerary->device) continue;
    admitted += other.takes_place();
    if (other.stage == PolicyRider::Stage::kWaiting && GoesBefore(other, rider, now)) {
      return absl::InternalError(absl::StrCat("rider ", rider.id, " is admitted before rider ", other.id));
    }
  }
  if (admitted > scenario_.options.max_riders) return absl::InternalError("more ride than may");
  if (rider.host_bytes > 0) {
    const MemoryBudget& host = policy_.budget(Memory::kHost);
    for (const PolicyRider* const other : WaitForHostBefore(rider, now)) {
      if (!stood_first_.contains(other->id)) continue;
      if (host.fixed_bytes + host.activation_bytes + other->host_bytes <= host.allowed_bytes()) continue;
      return absl::InternalError(absl::StrCat("rider ", rider.id, " takes the host's memory that rider ", other->id,
                                              " waits for on another device"));
    }
  }
  for (const Memory memory : {rider.itinerary->device, Memory::kHost}) {
    if (IsHost(memory) && rider.host_bytes == 0) continue;
    const MemoryBudget& budget = policy_.budget(memory);
    const int64_t bytes = budget.floor_bytes();
    if (bytes <= budget.allowed_bytes()) continue;
    return absl::InternalError(absl::StrCat("rider ", rider.id, " is admitted, and those who ride take ", bytes, " of ",
                                            budget.allowed_bytes(), " bytes of memory ", Index(memory)));
  }
  return absl::OkStatus();
}

absl::Status Queue::Check(absl::Duration now) {
  int waiting = 0;
  for (const PolicyRider& rider : policy_.sweeps().riders()) {
    const bool waits = rider.stage == PolicyRider::Stage::kWaiting;
    waiting += waits && !came_back_.contains(rider.id) && HeadThatFits(rider.itinerary->device, now) != &rider;
    if (rider.stage != PolicyRider::Stage::kAdmitted) continue;
    if (rider.after == nullptr || !rider.after->riding() || rider.after->passed_all()) {
      return absl::InternalError(absl::StrCat("rider ", rider.id, " waits for a sweep that is over"));
    }
    if (rider.after->itinerary->weights != rider.itinerary->weights ||
        rider.after->itinerary->device != rider.itinerary->device) {
      return absl::InternalError(absl::StrCat("rider ", rider.id, " waits for a sweep that it could not live off"));
    }
    if (rider.join == JoinPolicy::kImmediate && !rider.is_lap) {
      return absl::InternalError(absl::StrCat("rider ", rider.id, " waits for a sweep, and wants to begin at once"));
    }
    if (rider.after->priority > rider.priority) {
      return absl::InternalError(absl::StrCat("rider ", rider.id, " waits for the sweep of a less urgent one"));
    }
  }
  stood_first_.clear();
  for (size_t i = 0; i < scenario_.devices.size(); ++i) {
    const PolicyRider* const head = Head(DeviceMemory(static_cast<int>(i)), now);
    if (head != nullptr && MayWaitForHost(*head)) stood_first_.insert(head->id);
  }
  // And on each device one that was about to be let in, until something came between.
  const auto most = scenario_.options.max_waiting + static_cast<int>(scenario_.devices.size());
  if (waiting <= most) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(waiting, " wait, more than the ", scenario_.options.max_waiting, " that may"));
}

}  // namespace ditserve::simulation
