#include "tests/simulation/waits.h"

#include <algorithm>
#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"

namespace ditserve::simulation {
namespace {

// A rider that waited for admission for so many times the ageing time is admitted by arrival alone.
constexpr int kPatienceInQueue = 8;

}  // namespace

absl::Duration Waits::Bound(Memory device) const {
  return policy_.LivenessBound(device, absl::Microseconds(scenario_.transfer), absl::Microseconds(scenario_.operation),
                               absl::Microseconds(scenario_.freeing), scenario_.system_bytes > 0);
}

void Waits::Restart() {
  waiting_.clear();
  laps_.clear();
  heads_.assign(heads_.size(), {});
  over_.assign(over_.size(), {});
}

absl::Status Waits::Compare(const Wait& wait, absl::Duration now, const char* what) {
  const double share = absl::FDivDuration(now - wait.since, wait.most);
  worst_ = std::max(worst_, share);
  if (share <= 1) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": rider ", wait.rider, " for ",
                                          absl::ToInt64Microseconds(now - wait.since), " at module ", wait.module,
                                          ", more than the bound of ", absl::ToInt64Microseconds(wait.most)));
}

absl::Status Waits::Check(absl::Duration now) {
  for (const PolicyRider& rider : policy_.sweeps().riders()) {
    if (absl::Status status = CheckRider(rider, now); !status.ok()) return status;
  }
  for (size_t i = 0; i < heads_.size(); ++i) {
    if (absl::Status status = CheckHead(DeviceMemory(static_cast<int>(i)), now); !status.ok()) return status;
  }
  for (size_t i = 0; i < over_.size(); ++i) {
    if (absl::Status status = CheckBudget(static_cast<Memory>(i), now); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Waits::CheckRider(const PolicyRider& rider, absl::Duration now) {
  const Memory device = rider.itinerary->device;
  if (!rider.pending) {
    waiting_.erase(rider.id);
  } else {
    Wait& wait = waiting_.try_emplace(rider.id, Wait{now, absl::ZeroDuration(), rider.next, rider.id}).first->second;
    if (wait.module != rider.next) wait = {now, absl::ZeroDuration(), rider.next, rider.id};
    wait.most = std::max(wait.most, Bound(device));
    if (absl::Status status = Compare(wait, now, "a module is waited for"); !status.ok()) return status;
  }
  // A lap is looked at from its start on.
  if (!rider.riding() || rider.passed_all()) {
    laps_.erase(rider.id);
    return absl::OkStatus();
  }
  if (rider.next == 0) laps_.try_emplace(rider.id, Wait{now, absl::ZeroDuration(), 0, rider.id});
  const auto lap = laps_.find(rider.id);
  if (lap == laps_.end()) return absl::OkStatus();
  lap->second.most = std::max(
      lap->second.most, policy_.LapBound(*rider.itinerary, Bound(device), absl::Microseconds(scenario_.operation)));
  lap->second.module = rider.next;
  return Compare(lap->second, now, "a lap takes");
}

const PolicyRider* Waits::HeadThatFits(Memory device, absl::Duration now) const {
  const PolicyRider* head = nullptr;
  int admitted = 0;
  const auto rank = [&](const PolicyRider& rider) {
    const bool patient = now - rider.joined < kPatienceInQueue * scenario_.options.ageing;
    return std::tuple(patient, patient ? rider.priority : Priority::kInteractive, rider.joined, rider.id);
  };
  for (const PolicyRider& rider : policy_.sweeps().riders()) {
    if (rider.itinerary->device != device) continue;
    admitted += rider.admitted;
    if (rider.stage != PolicyRider::Stage::kWaiting) continue;
    if (head == nullptr || rank(rider) < rank(*head)) head = &rider;
  }
  if (head == nullptr || admitted >= scenario_.options.max_riders) return nullptr;
  const MemoryBudget& budget = policy_.budget(device);
  const int64_t widest = std::max(budget.widest_bytes, head->itinerary->widest_bytes);
  const int64_t bytes = budget.fixed_bytes + budget.activation_bytes + head->activation_bytes + widest;
  return bytes <= budget.allowed_bytes() ? head : nullptr;
}

absl::Status Waits::CheckHead(Memory device, absl::Duration now) {
  Wait& wait = heads_[static_cast<size_t>(DeviceOf(device))];
  const PolicyRider* const head = HeadThatFits(device, now);
  const RiderId rider = head == nullptr ? -1 : head->id;
  if (rider != wait.rider) wait = {now, absl::ZeroDuration(), 0, rider};
  if (head == nullptr) return absl::OkStatus();
  wait.most = std::max(wait.most, Bound(device));
  return Compare(wait, now, "admission is waited for, and it fits");
}

absl::Status Waits::CheckBudget(Memory memory, absl::Duration now) {
  const MemoryBudget& budget = policy_.budget(memory);
  Wait& wait = over_[Index(memory)];
  if (budget.used_bytes() <= budget.force_bytes()) {
    wait = {now, absl::ZeroDuration()};
    return absl::OkStatus();
  }
  if (wait.most == absl::ZeroDuration()) wait.since = now;
  for (size_t i = 0; i < heads_.size(); ++i) {
    wait.most = std::max(wait.most, Bound(DeviceMemory(static_cast<int>(i))));
  }
  return Compare(wait, now, "a budget is exceeded");
}

}  // namespace ditserve::simulation
