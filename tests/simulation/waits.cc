#include "tests/simulation/waits.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace ditserve::simulation {

LivenessConditions Waits::ConditionsOn(Memory device) const {
  return {policy_.AdmittedTo(device), absl::Microseconds(scenario_.transfer), absl::Microseconds(scenario_.operation),
          absl::Microseconds(scenario_.freeing), scenario_.system_bytes > 0};
}

absl::Duration Waits::Bound(Memory device) const { return LivenessBound(scenario_.options, ConditionsOn(device)); }

void Waits::Restart() {
  waiting_.clear();
  laps_.clear();
  heads_.assign(heads_.size(), {});
  over_.assign(over_.size(), {});
  answers_ = {};
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
  return CheckAnswers(now);
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
  if (rider.next == rider.itinerary->NextTaken(0))
    laps_.try_emplace(rider.id, Wait{now, absl::ZeroDuration(), 0, rider.id});
  const auto lap = laps_.find(rider.id);
  if (lap == laps_.end()) return absl::OkStatus();
  lap->second.most =
      std::max(lap->second.most, LapBound(scenario_.options, ConditionsOn(device), rider.itinerary->modules()));
  lap->second.module = rider.next;
  return Compare(lap->second, now, "a lap takes");
}

void Waits::Acquired(const PolicyRider& rider, absl::Duration now) { waited_[rider.id].since = now; }

void Waits::Granted(const PolicyRider& rider, absl::Duration now) {
  Waited& waited = waited_[rider.id];
  waited.before += now - waited.since;
}

absl::Status Waits::CheckElders(absl::Duration now) const {
  for (const PolicyRider& rider : policy_.sweeps().riders()) {
    if (!rider.pending || policy_.sweeps().FindComputable(*rider.itinerary, rider.next) != nullptr) continue;
    const Waited& waited = waited_.at(rider.id);
    if (now - waited.since + waited.before < scenario_.options.ageing) continue;
    const PolicyRider* const elder = policy_.elder(rider.itinerary->device);
    if (elder == nullptr)
      return absl::InternalError(absl::StrCat("rider ", rider.id, " waited too long, and nobody is served"));
    if (elder->pending && waited_.at(elder->id).since > waited.since) {
      return absl::InternalError(
          absl::StrCat("rider ", rider.id, " waited longer than rider ", elder->id, ", which is served"));
    }
  }
  return absl::OkStatus();
}

absl::Status Waits::CheckHead(Memory device, absl::Duration now) {
  Wait& wait = heads_[static_cast<size_t>(DeviceOf(device))];
  const PolicyRider* const head = queue_.HeadThatFits(device, now);
  const RiderId rider = head == nullptr ? -1 : head->id;
  // (What the system refused before things went right is asked for after a pause.)
  const absl::Duration from = std::max(now, policy_.budget(device).grows_from);
  if (rider != wait.rider) wait = {from, absl::ZeroDuration(), 0, rider};
  if (head == nullptr) return absl::OkStatus();
  wait.most = std::max(wait.most, Bound(device));
  return Compare(wait, now, "admission is waited for, and it fits");
}

absl::Status Waits::CheckAnswers(absl::Duration now) {
  int64_t requests = 0;
  int modules = 0;
  for (const PolicyRider& rider : policy_.sweeps().riders()) {
    ++requests;
    modules = std::max(modules, rider.itinerary->modules());
  }
  if (requests == 0) {
    answers_ = {};
    return absl::OkStatus();
  }
  if (answers_.most == absl::ZeroDuration()) {
    absl::Duration from = now;  // As above.
    for (size_t i = 0; i < over_.size(); ++i) from = std::max(from, policy_.budget(static_cast<Memory>(i)).grows_from);
    answers_ = {from, AnswersBound(scenario_.options, ConditionsOn(DeviceMemory(0)), requests, modules)};
  }
  return Compare(answers_, now, "all are not answered");
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
