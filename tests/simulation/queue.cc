#include "tests/simulation/queue.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"

namespace ditserve::simulation {
namespace {

// A rider that waited for admission for so many times the ageing time is admitted by arrival alone.
constexpr int kPatienceInQueue = 8;

}  // namespace

bool Queue::GoesBefore(const PolicyRider& a, const PolicyRider& b, absl::Duration now) const {
  const auto rank = [&](const PolicyRider& rider) {
    const bool patient = now - rider.joined < kPatienceInQueue * scenario_.options.ageing;
    return std::tuple(patient, patient ? rider.priority : Priority::kInteractive, rider.joined, rider.id);
  };
  return rank(a) < rank(b);
}

const PolicyRider* Queue::HeadThatFits(Memory device, absl::Duration now) const {
  const PolicyRider* head = nullptr;
  int admitted = 0;
  for (const PolicyRider& rider : policy_.sweeps().riders()) {
    if (rider.itinerary->device != device) continue;
    admitted += rider.takes_place();
    if (rider.stage != PolicyRider::Stage::kWaiting) continue;
    if (head == nullptr || GoesBefore(rider, *head, now)) head = &rider;
  }
  if (head == nullptr || admitted >= scenario_.options.max_riders) return nullptr;
  const MemoryBudget& budget = policy_.budget(device);
  const int64_t widest = std::max(budget.widest_bytes, head->itinerary->widest_bytes);
  const int64_t bytes = budget.fixed_bytes + budget.activation_bytes + head->activation_bytes + widest;
  return bytes <= budget.allowed_bytes() ? head : nullptr;
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
  const MemoryBudget& budget = policy_.budget(rider.itinerary->device);
  if (budget.floor_bytes() <= budget.allowed_bytes()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("rider ", rider.id, " is admitted, and those who ride take ",
                                          budget.floor_bytes(), " of ", budget.allowed_bytes(), " bytes"));
}

absl::Status Queue::Check(absl::Duration now) const {
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
  // And on each device one that was about to be let in, until something came between.
  const auto most = scenario_.options.max_waiting + static_cast<int>(scenario_.devices.size());
  if (waiting <= most) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(waiting, " wait, more than the ", scenario_.options.max_waiting, " that may"));
}

}  // namespace ditserve::simulation
