#include "core/residency/forecast.h"

#include <algorithm>
#include <deque>
#include <list>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

class Laps {
 public:
  Laps(Policy& policy, const ForecastRequest& request, absl::Duration now)
      : policy_(policy), request_(request), now_(now), link_free_(now) {}

  absl::StatusOr<ForecastLap> Run() {
    lap_ = {};
    const absl::Duration begun = now_;
    for (int i = 0; i < request_.riders; ++i) {
      DITSERVE_ASSIGN_OR_RETURN(PolicyRider * joined, policy_.Join(request_.ride, now_, actions_));
      riders_.push_back({joined});
    }
    Apply();
    while (!riders_.empty()) {
      BeginComputing();
      DITSERVE_RETURN_IF_ERROR(Step());
    }
    lap_.time = now_ - begun;
    return lap_;
  }

 private:
  struct Rider {
    PolicyRider* policy;
    std::optional<Pin> lease;
  };
  struct Load {
    LoadId id;
    absl::Duration arrives;
    double share;  // Of the processors that compute, until then.
  };

  // What is due next happens.
  absl::Status Step() {
    const absl::Duration arrives = loads_.empty() ? absl::InfiniteDuration() : loads_.front().arrives;
    const double pace = loads_.empty() ? 1 : 1 - loads_.front().share;
    const absl::Duration computed = computing_ == nullptr ? absl::InfiniteDuration() : ComputedAt(pace);
    const absl::Duration next = std::max(now_, std::min({arrives, computed, policy_.NextTick()}));
    if (next == absl::InfiniteDuration()) return Stuck();
    left_ -= (next - std::exchange(now_, next)) * pace;
    if (arrives == next) {
      const LoadId load = loads_.front().id;
      loads_.pop_front();
      policy_.Enqueued(load, now_, actions_);
      policy_.Finished(load, now_, actions_);
    } else if (computed == next) {
      EndComputing();
    } else {
      policy_.Tick(now_, actions_);
    }
    Apply();
    return absl::OkStatus();
  }

  absl::Duration ComputedAt(double pace) const { return left_ > absl::ZeroDuration() ? now_ + left_ / pace : now_; }

  // Nothing is due, and somebody waits.
  absl::Status Stuck() const {
    for (const Memory memory : {request_.ride.device, Memory::kHost}) {
      const MemoryBudget& budget = policy_.budget(memory);
      if (policy_.AdmittedTo(request_.ride.device) > 0 || budget.lowered_bytes >= budget.configured_bytes) continue;
      return absl::ResourceExhaustedError(absl::StrCat("the request waits until other processes leave more than ",
                                                       budget.lowered_bytes, " bytes of ",
                                                       IsHost(memory) ? "host" : "device", " memory"));
    }
    return absl::InternalError("a rider waits and nothing is under way");
  }

  // Carries out what was decided, and what follows from that.
  void Apply() {
    Note();
    while (!actions_.empty()) {
      for (Action& action : std::exchange(actions_, {})) {
        if (const auto* load = std::get_if<StartLoad>(&action)) {
          Start(*load);
        } else if (auto* grant = std::get_if<Grant>(&action)) {
          Of(grant->rider).lease = std::move(grant->pin);
        } else if (const auto* begin = std::get_if<Begin>(&action)) {
          Acquire(Of(begin->rider));
        } else if (const auto* trim = std::get_if<TrimCache>(&action)) {
          policy_.Freed(trim->memory, trim->bytes, now_, actions_);
        }
      }
      Note();
    }
  }

  // Loads share the transfer threads, which take their pieces in order.
  void Start(const StartLoad& load) {
    const auto at = static_cast<size_t>(load.module);
    const auto bytes_in = [&](FormId form) { return request_.form_bytes[at][static_cast<size_t>(form)]; };
    Memory from = Memory::kHost;
    int64_t from_bytes = policy_.stored_bytes(load.weights, load.module);
    double seconds = 0;
    if (load.source == nullptr) {
      lap_.disk_read_bytes += from_bytes;
      seconds = static_cast<double>(from_bytes) / request_.disk_bytes_per_second;
    } else {
      from = load.source->key.memory;
      from_bytes = bytes_in(load.source->key.form);
      lap_.copy_read_bytes += from_bytes;
      const double speed = IsHost(from) ? request_.copy_bytes_per_second
                                        : request_.own_copy_bytes_per_second.value_or(request_.copy_bytes_per_second);
      seconds = static_cast<double>(from_bytes) / speed;
    }
    for (const Copy* target : load.targets) {
      if (IsHost(from) && !IsHost(target->key.memory)) lap_.device_copy_bytes += from_bytes;
      from = target->key.memory;
      from_bytes = bytes_in(target->key.form);
    }
    const absl::Duration work = request_.work ? request_.work(load) : absl::ZeroDuration();
    const absl::Duration takes = absl::Seconds(seconds) + work / request_.load_processors;
    link_free_ = std::max(link_free_, now_) + takes;
    loads_.push_back({load.load, link_free_, ShareOf(work, takes)});
  }

  double ShareOf(absl::Duration work, absl::Duration takes) const {
    if (request_.computing_processors == 0 || work == absl::ZeroDuration()) return 0;
    return std::min(1.0, absl::FDivDuration(work, takes) / request_.computing_processors);
  }

  void Acquire(Rider& rider) {
    // A module that can't be had is no part of a forecast: no load fails here.
    if (auto pin = policy_.Acquire(*rider.policy, rider.policy->next, now_, actions_); pin.ok() && *pin) {
      rider.lease = **std::move(pin);
    }
  }

  // Of those who have their module, who has computed least goes first, as the executor has it.
  void BeginComputing() {
    if (computing_ != nullptr) return;
    for (Rider& rider : riders_) {
      if (!rider.lease) continue;
      const bool before =
          computing_ == nullptr || rider.policy->attained_seconds() < computing_->policy->attained_seconds();
      if (before) computing_ = &rider;
    }
    if (computing_ == nullptr) return;
    begun_ = now_;
    left_ = ComputingOf(*computing_->policy);
  }

  // Where it is not known, as long as reading: then as much is there ahead as there ever is.
  absl::Duration ComputingOf(const PolicyRider& rider) const {
    if (!request_.computing.empty()) return request_.computing[static_cast<size_t>(rider.next)];
    const auto bytes = static_cast<double>(policy_.stored_bytes(request_.ride.weights, rider.next));
    return absl::Seconds(bytes / request_.disk_bytes_per_second);
  }

  void EndComputing() {
    Rider& rider = *std::exchange(computing_, nullptr);
    lap_.computing += now_ - begun_;
    policy_.Release(*rider.policy, *std::exchange(rider.lease, std::nullopt), now_ - begun_, now_, actions_);
    if (!rider.policy->passed_all()) return Acquire(rider);
    policy_.Leave(*rider.policy, now_, actions_);
    riders_.remove_if([&rider](const Rider& each) { return &each == &rider; });
  }

  // Keeps what is held when it is most.
  void Note() {
    Note(policy_.budget(request_.ride.device), lap_.device);
    Note(policy_.budget(Memory::kHost), lap_.host);
    lap_.most_riders = std::max(lap_.most_riders, static_cast<int>(policy_.AdmittedTo(request_.ride.device)));
  }

  static void Note(const MemoryBudget& budget, MemoryUsage& most) {
    if (most.budget_bytes > 0 && budget.used_bytes() <= most.total_bytes()) return;
    most.budget_bytes = budget.force_bytes();
    most.wanted_bytes = budget.configured_bytes;
    most.weights_bytes = budget.copy_bytes;
    most.activations_bytes = budget.activation_bytes;
    most.staging_bytes = budget.used_bytes() - budget.copy_bytes - budget.activation_bytes;
    most.peak_bytes = budget.used_bytes();
  }

  Rider& Of(const PolicyRider* rider) {
    return *std::find_if(riders_.begin(), riders_.end(), [&](const Rider& each) { return each.policy == rider; });
  }

  Policy& policy_;
  const ForecastRequest& request_;
  absl::Duration now_;
  absl::Duration link_free_;  // When all that is being read has arrived.
  Actions actions_;
  std::list<Rider> riders_;
  std::deque<Load> loads_;
  Rider* computing_ = nullptr;
  absl::Duration begun_, left_;  // Of what is computed, what it takes by itself.
  ForecastLap lap_;
};

}  // namespace

absl::StatusOr<Forecast> ForecastLaps(Policy& policy, const ForecastRequest& request, absl::Duration now) {
  Laps laps(policy, request, now);
  Forecast forecast;
  DITSERVE_ASSIGN_OR_RETURN(forecast.first, laps.Run());
  DITSERVE_ASSIGN_OR_RETURN(forecast.repeated, laps.Run());
  return forecast;
}

}  // namespace ditserve
