// Admission to the ResidencyManager: who may ride, from when, and within which budgets.
#include <algorithm>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/residency/residency_manager.h"

namespace ditserve {
namespace {

// How fast weights are taken to move while nothing has been moved yet, bytes a second.
constexpr double kAssumedPace = 1e9;

// Bytes of a segment of the streaming window: of the largest module, and so much more that smaller ones fit beside each
// other in spite of the pages they begin in.
int64_t SegmentBytes(const std::vector<Route>& routes) {
  constexpr int64_t kPageBytes = Checkpoint::kReadAlignment;
  constexpr int64_t kSlackShare = 64;
  int64_t largest = 0;
  for (const Route& route : routes) largest = std::max(largest, route.compute_bytes);
  return largest + largest / kSlackShare / kPageBytes * kPageBytes;
}

constexpr absl::Duration kShortestRetry = absl::Seconds(1);

}  // namespace

absl::StatusOr<std::unique_ptr<Rider>> ResidencyManager::Join(ModelId model, const Profile& profile,
                                                              const RideOptions& options,
                                                              absl::AnyInvocable<void(absl::Status) &&> admitted) {
  auto rider = std::unique_ptr<Rider>(new Rider(this));
  {
    absl::MutexLock lock(&mutex_);
    DITSERVE_RETURN_IF_ERROR(CheckQueue());
    RiderState state;
    state.rider = rider.get();
    state.model = model;
    state.profile = profile;
    state.options = options;
    state.routes = MakeRoutes(*models_[model].weights, profile, *device_, forms_);
    state.window_bytes = SegmentBytes(state.routes);
    state.admitted = std::move(admitted);
    state.joined = clock_->Now();
    DITSERVE_RETURN_IF_ERROR(CheckFits(state));
    // In order of priority, then of arrival.
    const auto place = std::find_if(riders_.begin(), riders_.end(), [&](const RiderState& other) {
      return !other.active && other.options.priority > options.priority;
    });
    riders_.insert(place, std::move(state));
  }
  Advance();
  return rider;
}

int64_t ResidencyManager::WindowBytes(ModelId model, const Profile& profile) {
  const absl::MutexLock lock(&mutex_);
  return SegmentBytes(MakeRoutes(*models_[model].weights, profile, *device_, forms_));
}

absl::Status ResidencyManager::CheckFits(const RiderState& state) const {
  const int64_t budget = wanted_bytes_[Index(Memory::kDevice)];
  if (state.options.activation_bytes <= budget - state.window_bytes) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the request takes ", state.options.activation_bytes, " bytes of device memory for activations and ",
                   state.window_bytes, " to stream the model through; the device budget is ", budget, " bytes"));
}

absl::Status ResidencyManager::CheckQueue() const {
  int waiting = 0;
  for (const RiderState& other : riders_) waiting += !other.active;
  if (waiting < options_.max_waiting) return absl::OkStatus();
  const int active = std::max(static_cast<int>(riders_.size()) - waiting, 1);
  const absl::Duration retry = std::max(usual_ride_.value_or(kShortestRetry) / active, kShortestRetry);
  absl::Status status = absl::ResourceExhaustedError(
      absl::StrCat(waiting, " requests are waiting already, the most the server lets wait: try again in about ",
                   absl::ToInt64Seconds(retry), " s"));
  status.SetPayload(kRetryAfterPayload, absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(retry))));
  return status;
}

bool ResidencyManager::AdmitLocked(Deferred& deferred) {
  for (RiderState& state : riders_) {
    if (state.active || !state.ended.ok()) continue;
    const Admission admission = TryAdmitLocked(state, deferred);
    if (admission != Admission::kAdmitted) return admission == Admission::kOnceThereIsRoom;  // Nobody overtakes.
  }
  return false;
}

ResidencyManager::Admission ResidencyManager::TryAdmitLocked(RiderState& state, Deferred& deferred) {
  int active = 0;
  for (const RiderState& other : riders_) active += other.active;
  const Demand demand = DemandOf(&state);
  const int64_t budget = wanted_bytes_[Index(Memory::kDevice)];
  if (active >= options_.max_riders || demand.activation_bytes > budget - demand.window_bytes) {
    return Admission::kNotNow;
  }
  std::optional<Reservation> reservation =
      ledger_->TryReserve(Memory::kDevice, MemoryKind::kActivations, state.options.activation_bytes);
  if (!reservation) {
    if (planned_for_ != &state) PlanLocked(&state);
    FreeLocked(Memory::kDevice, MissingBytes(Memory::kDevice, state.options.activation_bytes, budget), deferred);
    return Admission::kOnceThereIsRoom;
  }
  state.activations = *std::move(reservation);
  state.active = true;
  PlanLocked();
  state.watermark = ledger_->BeginWatermark(Memory::kDevice);
  idle_since_.reset();
  state.after = ChooseSweep(state);
  if (state.after == nullptr) BeginLocked(state, deferred);
  return Admission::kAdmitted;
}

void ResidencyManager::BeginLocked(RiderState& state, Deferred& deferred) {
  state.after = nullptr;
  state.begun = clock_->Now();
  state.account.queue = state.begun - state.joined;
  int riders = 0;
  std::optional<absl::Duration> least;
  for (const RiderState& other : riders_) {
    if (!other.active || other.after != nullptr) continue;
    riders += other.model == state.model;
    if (&other != &state) least = std::min(least.value_or(other.attained), other.attained);
  }
  state.attained = least.value_or(absl::ZeroDuration());  // As if it had always been there: no better, no worse.
  for (RiderState& other : riders_) {
    if (other.active && other.after == nullptr && other.model == state.model) {
      other.account.most_riders = std::max(other.account.most_riders, riders);
    }
  }
  Executor::Work begin = [admitted = std::exchange(state.admitted, nullptr)]() mutable {
    std::move(admitted)(absl::OkStatus());
  };
  deferred.posts.emplace_back(std::move(begin), TurnOf(state));
}

void ResidencyManager::RefuseLocked(RiderState& state, const absl::Status& why, Deferred& deferred) {
  state.ended = why;
  state.after = nullptr;  // It will not begin any more.
  Executor::Work refuse = [admitted = std::exchange(state.admitted, nullptr), why]() mutable {
    std::move(admitted)(why);
  };
  deferred.posts.emplace_back(std::move(refuse), Turn{});
}

const ResidencyManager::RiderState* ResidencyManager::ChooseSweep(RiderState& state) const {
  const RiderState* first = nullptr;  // Of those under way: the nearest to its end, and the farthest from it.
  const RiderState* last = nullptr;
  for (const RiderState& other : riders_) {
    if (!other.active || other.after != nullptr || !other.ended.ok() || other.model != state.model) continue;
    if (&other == &state) continue;
    if (first == nullptr || other.next > first->next) first = &other;
    if (last == nullptr || other.next < last->next) last = &other;
  }
  if (first == nullptr) return nullptr;
  const JoinSituation situation = SituationOf(state, *last);
  state.account.join = PredictJoinCosts(situation);
  const bool cheaper = state.account.join->wait < state.account.join->immediate;
  const bool waits = state.options.join == JoinPolicy::kWait || (state.options.join == JoinPolicy::kAuto && cheaper &&
                                                                 situation.move_passed > absl::ZeroDuration());
  state.account.waited_for_sweep = waits;
  return waits ? first : nullptr;
}

JoinSituation ResidencyManager::SituationOf(const RiderState& state, const RiderState& last) const {
  const Model& model = models_[state.model];
  const double pace = pace_.busy > absl::ZeroDuration()
                          ? static_cast<double>(pace_.stored_bytes) / absl::ToDoubleSeconds(pace_.busy)
                          : kAssumedPace;
  double passed = 0, ahead = 0;
  for (ModuleIndex i = 0; i < model.copies.size(); ++i) {
    if (FindComputable(state, i) != nullptr) continue;
    (i < last.next ? passed : ahead) += static_cast<double>(model.weights->module(i).stored_bytes);
  }
  JoinSituation situation;
  situation.move_passed = absl::Seconds(passed / pace);
  situation.move_ahead = absl::Seconds(ahead / pace);
  const auto computing = [&](const RiderState& rider) {
    return absl::Seconds(model.computing_per_byte * static_cast<double>(rider.options.activation_bytes));
  };
  situation.compute_own = computing(state);
  for (const RiderState& other : riders_) {
    if (!other.active || other.after != nullptr || other.model != state.model || &other == &state) continue;
    const double left = 1 - static_cast<double>(other.next) / model.copies.size();
    situation.compute_others += left * computing(other);
  }
  return situation;
}

ResidencyManager::Demand ResidencyManager::DemandOf(const RiderState* admitting) const {
  Demand demand;
  for (const RiderState& state : riders_) {
    if (!state.active && &state != admitting) continue;
    demand.activation_bytes += state.options.activation_bytes;
    demand.window_bytes = std::max(demand.window_bytes, state.window_bytes);
  }
  return demand;
}

void ResidencyManager::PlanLocked(const RiderState* admitting) {
  const Demand demand = DemandOf(admitting);
  // Riders of equal profiles wish the same.
  std::vector<std::pair<const RiderState*, KeepWish>> wishes;
  std::vector<std::pair<RiderState*, size_t>> riders;  // And their wish.
  for (RiderState& state : riders_) {
    if (!state.active && &state != admitting) continue;
    auto same = std::find_if(wishes.begin(), wishes.end(), [&](const auto& wish) {
      return wish.first->model == state.model && wish.first->profile == state.profile;
    });
    if (same == wishes.end()) same = wishes.insert(same, {&state, {state.model, &state.routes}});
    riders.emplace_back(&state, same - wishes.begin());
  }
  const auto plan = [&](bool streams) {
    std::vector<KeepWish> limited;
    for (auto [state, wish] : wishes) {
      if (state->profile.vram_limit_bytes) {
        wish.limited_bytes = *state->profile.vram_limit_bytes - demand.activation_bytes;
        if (streams) wish.limited_bytes -= kLimitedSegments * state->window_bytes;
      }
      limited.push_back(wish);
    }
    const int64_t window = streams ? kWindowSegments * demand.window_bytes : 0;
    return PlanKept(limited,
                    {wanted_bytes_[Index(Memory::kDevice)] - demand.activation_bytes - window,
                     wanted_bytes_[Index(Memory::kHost)] - least_host_bytes()},
                    device_->computes_in_host_memory());
  };
  KeepPlan chosen = plan(/*streams=*/false);
  streams_ = !chosen.complete;
  if (streams_) chosen = plan(/*streams=*/true);
  for (const auto& [state, wish] : riders) state->kept = chosen.kept[wish];
  planned_for_ = admitting;
}

absl::Status ResidencyManager::SetBudget(Memory memory, int64_t bytes) {
  const int64_t least = memory == Memory::kHost ? least_host_bytes() : 0;
  if (bytes < least) {
    return absl::FailedPreconditionError(absl::StrCat("a budget of ", bytes, " bytes is less than the ", least,
                                                      " bytes that the server always needs of this memory"));
  }
  Deferred deferred;
  {
    absl::MutexLock lock(&mutex_);
    wanted_bytes_[Index(memory)] = bytes;
    PlanLocked();
    for (RiderState& state : riders_) {
      const absl::Status fits = CheckFits(state);
      if (!state.active && state.ended.ok() && !fits.ok()) RefuseLocked(state, fits, deferred);
    }
  }
  Advance(std::move(deferred));
  return absl::OkStatus();
}

bool ResidencyManager::ShrinkLocked(Deferred& deferred) {
  const Demand demand = DemandOf();
  bool exceeds = false;
  for (const Memory memory : {Memory::kDevice, Memory::kHost}) {
    const int64_t needed = memory == Memory::kDevice ? demand.activation_bytes + demand.window_bytes : 0;
    const int64_t budget = std::max(wanted_bytes_[Index(memory)], needed);
    ledger_->SetBudget(memory, budget);
    const int64_t excess = MissingBytes(memory, 0, budget);
    if (excess <= 0) continue;
    FreeLocked(memory, excess, deferred);
    exceeds = exceeds || memory == Memory::kDevice;
  }
  return exceeds;
}

}  // namespace ditserve
