#include "tests/simulation/world.h"

#include <algorithm>
#include <tuple>

namespace ditserve::simulation {
namespace {

constexpr int kFailurePercent = 3;

std::unique_ptr<Policy> MakePolicy(const Scenario& scenario) {
  const auto leads = [parents = scenario.parents](FormId from, FormId to) {
    for (int form = to; form >= 0; form = parents[static_cast<size_t>(form)]) {
      if (form == from) return true;
    }
    return false;
  };
  return std::make_unique<Policy>(scenario.options, scenario.devices, scenario.fixed_bytes, scenario.budget_bytes,
                                  leads);
}

}  // namespace

World::World(const Scenario& scenario, uint64_t seed)
    : scenario_(scenario),
      random_(seed * 31 + 7),
      decisions_(seed * 17 + 3),
      policy_(MakePolicy(scenario)),
      books_(scenario_, *policy_),
      queue_(scenario_, *policy_),
      waits_(scenario_, *policy_, queue_),
      computing_(scenario.devices.size(), -1) {
  for (const auto& modules : scenario.weights) weights_.push_back(policy_->AddWeights(modules));
  for (size_t i = 0; i < scenario.clients.size(); ++i) {
    to_come_ += !scenario.clients[i].comes_again;
    Post(scenario.clients[i].joins_at, What::kJoin, static_cast<int64_t>(i));
  }
  if (scenario.faults_until > 0) Post(Random(500), What::kDisturb, 0);
  if (scenario.renew_at > 0) Post(scenario.renew_at, What::kRenew, 0);
}

void World::Post(int64_t in, What what, int64_t of, Memory memory, int64_t bytes) {
  events_.push({now_ + in, order_++, what, of, memory, bytes});
}

bool World::AnyLeft() const {
  return std::any_of(rides_.begin(), rides_.end(),
                     [this](const auto& ride) { return !ClientOf(ride.second).comes_again || closing_; });
}

absl::Status World::Run(int64_t most_steps) {
  while (!events_.empty() || ((Faulty() || pressed_) && !rides_.empty())) {
    if (absl::Status status = Step(); !status.ok()) return Wrong(status);
    if (to_come_ == 0 && !AnyLeft()) closing_ = true;  // Who comes again comes no more.
    if (steps_ >= most_steps) {
      cut_off_ = true;
      return absl::OkStatus();
    }
  }
  return CheckEnd();
}

absl::Status World::Step() {
  if (events_.empty()) {
    Faulty() ? BecomeQuiet() : Relieve();
    return Apply();
  }
  const Event event = events_.top();
  events_.pop();
  if (event.what == What::kTick && event.time != tick_at_) return absl::OkStatus();
  if (event.what == What::kDisturb && !Faulty()) return absl::OkStatus();
  now_ = event.time;
  ++steps_;
  lost_.reset();
  books_.Note(policy_->sweeps().riders());
  if (absl::Status status = Handle(event); !status.ok()) return status;
  if (Faulty() && steps_ > scenario_.faults_until) BecomeQuiet();
  // Those who come again may go on for ever while the others wait for what was taken.
  if (pressed_ && std::none_of(rides_.begin(), rides_.end(), [this](const auto& ride) {
        return ride.second.rider->admitted && !ClientOf(ride.second).comes_again;
      })) {
    Relieve();
  }
  if (absl::Status status = Apply(); !status.ok()) return status;
  return Check();
}

absl::Status World::Handle(const Event& event) {
  switch (event.what) {
    case What::kJoin:
      Join(static_cast<size_t>(event.of));
      return wrong_;
    case What::kCancel:
      if (const auto ride = rides_.find(event.of); ride != rides_.end() && !ride->second.over) {
        policy_->Cancel(*ride->second.rider, absl::CancelledError("told so"), Now(), actions_);
      }
      return absl::OkStatus();
    case What::kOperationEnds:
      OperationEnds(event.of, event.bytes);
      return absl::OkStatus();
    case What::kActivationsRefused:
      RefuseActivations(event.of);
      return absl::OkStatus();
    case What::kEnqueued:
      LoadEnds(event.of);
      return absl::OkStatus();
    case What::kFinished: {
      const Loading finished = std::move(loads_.at(event.of));
      loads_.erase(event.of);
      books_.Finished(finished.load);
      policy_->Finished(event.of, Now(), actions_);
      return absl::OkStatus();
    }
    case What::kFreed:
      books_.Freed(event.memory, event.bytes);
      policy_->Freed(event.memory, event.bytes, Now(), actions_);
      return absl::OkStatus();
    case What::kLeave:
      Leave(event.of);
      return absl::OkStatus();
    case What::kDisturb:
      Disturb();
      return absl::OkStatus();
    case What::kTick:
      tick_at_ = -1;
      policy_->Tick(Now(), actions_);
      return absl::OkStatus();
    case What::kRenew:
      Renew();
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

void World::Join(size_t client) {
  const Scenario::Client& about = scenario_.clients[client];
  if (about.comes_again && closing_) return;
  to_come_ -= !about.comes_again;
  Policy::JoinRequest request = about.request;
  request.weights = weights_[static_cast<size_t>(request.weights)];
  absl::StatusOr<PolicyRider*> rider = policy_->Join(std::move(request), Now(), actions_);
  if (!rider.ok()) {
    wrong_ = CheckRefusal(about, rider.status());
    if (about.comes_again) Post(1 + Random(500), What::kJoin, static_cast<int64_t>(client));
    return;
  }
  waits_.RestartAnswers();
  const int64_t id = next_ride_++;
  rides_[id] = {client, *rider, about.laps - 1};
  rides_[id].waits_since = now_;
  ride_of_[*rider] = id;
  if (about.cancels_at >= 0) Post(std::max<int64_t>(0, about.cancels_at - now_), What::kCancel, id);
}

// While it makes this lap, so that the first modules of the next are there when it comes to them.
void World::JoinLap(int64_t id) {
  Ride& before = rides_.at(id);
  std::vector<Route> routes = ClientOf(before).request.routes;
  // Every other lap takes all modules, as where there is no room for what some make.
  const size_t skips_from = before.laps_left % 2 == 1 ? 1 : routes.size();
  for (size_t i = skips_from; i < routes.size(); i += 3) {
    const bool others = std::any_of(routes.begin(), routes.end(),
                                    [&](const Route& other) { return other.taken() && &other != &routes[i]; });
    if (others) routes[i] = Route();
  }
  std::optional<ModuleIndex> undecided;
  if (ClientOf(before).decides) undecided = static_cast<ModuleIndex>(decisions_() % routes.size());
  const absl::StatusOr<PolicyRider*> rider =
      policy_->JoinLap(*before.rider, std::move(routes), undecided, Now(), actions_);
  if (!rider.ok()) {
    if (before.rider->ended.ok()) wrong_ = rider.status();
    return;
  }
  waits_.RestartAnswers();
  const int64_t next = next_ride_++;
  rides_[next] = {before.client, *rider, before.laps_left - 1, -1, id};
  rides_[next].waits_since = now_;
  ride_of_[*rider] = next;
  before.next_lap = next;
}

void World::OperationEnds(int64_t id, int64_t took) {
  Ride& ride = rides_.at(id);
  Pin pin = *std::move(ride.pin);
  ride.pin.reset();
  ride.computing = false;
  computing_[static_cast<size_t>(DeviceOf(ride.rider->itinerary->device))] = -1;
  books_.Unpinned(*pin.copy());
  policy_->Release(*ride.rider, std::move(pin), absl::Microseconds(took), Now(), actions_);
  if (ride.rider->passed_all()) ride.over = true;
  if (!ride.over) AcquireNext(id);
}

void World::LoadEnds(LoadId id) {
  Loading& loading = loads_.at(id);
  if (loading.refused) {
    Refuse(id, *loading.refused);
  } else if (Faulty() && !scenario_.only_budgets && Random(100) < kFailurePercent) {
    Fail(id);
  } else {
    loading.enqueued = true;
    Post(scenario_.late_finish ? Random(scenario_.transfer) : 0, What::kFinished, id);
    books_.Enqueued(loading.load);
    policy_->Enqueued(id, Now(), actions_);
  }
}

void World::Fail(LoadId id) {
  const Loading failed = std::move(loads_.at(id));
  loads_.erase(id);
  lost_ = {failed.load.weights, failed.load.module, absl::StatusCode::kUnavailable};
  for (auto& [ride_id, ride] : rides_) {
    if (ride.rider->itinerary->weights == lost_->weights) ride.failed.insert(lost_->module);
  }
  books_.TakenBack(failed.load, std::vector<int64_t>(scenario_.budget_bytes.size()));
  policy_->Failed(id, absl::UnavailableError("failed"), Now(), actions_);
}

// What the system gave to other targets stays; of those that it was to grow for some, or all, is given back.
void World::Refuse(LoadId id, Memory memory) {
  const Loading refused = std::move(loads_.at(id));
  loads_.erase(id);
  lost_ = {refused.load.weights, refused.load.module, absl::StatusCode::kResourceExhausted};
  for (auto& [ride_id, ride] : rides_) {
    const PolicyRider& rider = *ride.rider;
    ride.refusals += rider.pending && rider.itinerary->weights == lost_->weights && rider.next == lost_->module;
  }
  std::vector<int64_t> lost(scenario_.budget_bytes.size());
  for (const Copy* target : refused.load.targets) {
    if (target->key.memory != memory || target->grown_bytes == 0) continue;
    lost[Index(memory)] += Random(2) == 0 ? target->bytes : target->grown_bytes;
  }
  books_.TakenBack(refused.load, lost);
  if (scenario_.system_bytes == 0) waits_.Restart();
  policy_->Refused(id, memory, lost, absl::ResourceExhaustedError("refused"), Now(), actions_);
}

void World::RefuseActivations(int64_t id) {
  Ride& ride = rides_.at(id);
  if (!ride.rider->ended.ok()) {
    EndWait(ride);
    ride.over = true;
    return;
  }
  ++ride.refusals;
  queue_.CameBack(*ride.rider);
  const int64_t lost = Random(2) == 0 ? ride.rider->activation_bytes : ride.grown_bytes;
  books_.GivenUp(*ride.rider, lost, Now());
  waits_.Admitted(*ride.rider);
  waits_.RestartAnswers();
  if (scenario_.system_bytes == 0) waits_.Restart();
  policy_->Refused(*ride.rider, lost, absl::ResourceExhaustedError("refused"), Now(), actions_);
}

void World::Disturb() {
  const auto some = static_cast<Memory>(Random(static_cast<int64_t>(scenario_.budget_bytes.size())));
  const int64_t budget = scenario_.budget_bytes[Index(some)];
  const int64_t kind = scenario_.only_budgets ? 3 + Random(7) : Random(10);
  if (kind < 3 && !rides_.empty()) {
    auto ride = rides_.begin();
    std::advance(ride, Random(static_cast<int64_t>(rides_.size())));
    policy_->Cancel(*ride->second.rider, absl::CancelledError("disturbed"), Now(), actions_);
  } else if (kind < 6) {
    policy_->SetBudget(some, scenario_.fixed_bytes[Index(some)] + budget / 3 + Random(budget), Now(), actions_);
  } else if (kind < 9) {
    policy_->SetPressure(some, Random(budget + 1), Now(), actions_);
  } else {
    policy_->SetPressure(some, MemoryBudget::kUnlimited, Now(), actions_);
  }
  Post(1 + Random(scenario_.fault_gap), What::kDisturb, 0);
}

// Nothing goes wrong any more; what a lasting fault left behind stays: a system that gives less than the budget, and in
// some scenarios pressure.
void World::BecomeQuiet() {
  quiet_ = true;
  pressed_ = scenario_.pressed;
  if (!pressed_) Relieve();
}

void World::Relieve() {
  pressed_ = false;
  for (size_t i = 0; i < scenario_.budget_bytes.size(); ++i) {
    policy_->SetPressure(static_cast<Memory>(i), MemoryBudget::kUnlimited, Now(), actions_);
  }
}

// Weights that nobody uses are unloaded, and loaded anew.
void World::Renew() {
  if (closing_ && rides_.empty()) return;
  Post(scenario_.renew_at, What::kRenew, 0);
  const auto place = static_cast<size_t>(Random(static_cast<int64_t>(weights_.size())));
  const WeightsId old = weights_[place];
  for (const auto& [id, ride] : rides_) {
    if (ride.rider->itinerary->weights == old) return;
  }
  for (const auto& [id, loading] : loads_) {
    if (loading.load.weights == old) return;
  }
  policy_->RemoveWeights(old, Now(), actions_);
  weights_[place] = policy_->AddWeights(scenario_.weights[place]);
}

void World::AcquireNext(int64_t id) {
  if (rides_.at(id).laps_left > 0 && rides_.at(id).lap_before < 0) {
    JoinLap(id);
    rides_.at(id).laps_left = 0;
  }
  Ride& ride = rides_.at(id);
  ride.refusals = 0;
  absl::StatusOr<std::optional<Pin>> pin = policy_->Acquire(*ride.rider, NextOf(*ride.rider), Now(), actions_);
  waits_.Acquired(*ride.rider, Now());
  if (!pin.ok()) {
    ride.over = true;
    if (absl::Status status = CheckNotAcquired(ride, pin.status()); !status.ok()) wrong_ = status;
  } else if (*pin) {
    if (absl::Status status = books_.Pinned(*ride.rider, *(*pin)->copy()); !status.ok()) wrong_ = status;
    ride.pin = *std::move(pin);
    ride.granted_at = now_;
    ride.most_granted = 0;
  } else {
    ride.waits_since = now_;
  }
}

ModuleIndex World::NextOf(const PolicyRider& rider) {
  const bool decides = rider.undecided && rider.next >= *rider.undecided;
  if (!decides || decisions_() % 2 == 0) return rider.next;
  const Itinerary& itinerary = *rider.itinerary;
  const auto left = static_cast<uint64_t>(itinerary.modules() - rider.next);
  const ModuleIndex to = itinerary.NextTaken(rider.next + static_cast<ModuleIndex>(decisions_() % left));
  return to < itinerary.modules() ? to : rider.next;
}

void World::EndWait(Ride& ride) {
  if (ride.waits_since < 0) return;
  (ride.began ? stalled_ : queued_) += now_ - ride.waits_since;
  ride.waits_since = -1;
}

// The executor: of those who have a copy, who waited long goes first, then by priority and what they had of it.
void World::Compute(int device) {
  if (computing_[static_cast<size_t>(device)] >= 0) return;
  Ride* first = nullptr;
  int64_t first_id = -1;
  const int64_t ageing = absl::ToInt64Microseconds(scenario_.options.ageing);
  const auto rank = [&](const Ride& ride) {
    const bool aged = now_ - ride.granted_at >= ageing;
    return std::tuple(!aged, aged ? ride.granted_at : 0, ride.rider->priority, ride.rider->attained_seconds(),
                      ride.rider->id);
  };
  for (auto& [id, ride] : rides_) {
    if (!ride.pin || ride.over || DeviceOf(ride.rider->itinerary->device) != device) continue;
    if (first == nullptr || rank(ride) < rank(*first)) first = &ride, first_id = id;
  }
  if (first == nullptr) return;
  first->computing = true;
  computing_[static_cast<size_t>(device)] = first_id;
  const int64_t took = 1 + Random(ClientOf(*first).operation);
  Post(took, What::kOperationEnds, first_id, Memory::kHost, took);
}

void World::Leave(int64_t id) {
  Ride& ride = rides_.at(id);
  if (ride.pin) {
    books_.Unpinned(*ride.pin->copy());
    policy_->Release(*ride.rider, *std::move(ride.pin), absl::ZeroDuration(), Now(), actions_);
  }
  PolicyRider* const rider = ride.rider;
  const size_t client = ride.client;
  PolicyRider* next = nullptr;
  if (ride.next_lap >= 0) {
    Ride& lap = rides_.at(ride.next_lap);
    next = lap.rider;
    lap.lap_before = -1;
  }
  const bool is_alone = next == nullptr && ride.lap_before < 0;
  if (ride.lap_before >= 0) rides_.at(ride.lap_before).next_lap = -1;
  ride_of_.erase(rider);
  rides_.erase(id);
  // The system may have refused some of its activations' memory.
  const bool refused = rider->admitted && !rider->itinerary->in_host_memory && next == nullptr && Random(8) == 0;
  const int64_t lost = refused ? Random(rider->activation_bytes + 1) : 0;
  books_.Left(*rider, lost, next != nullptr, Now());
  waits_.Forget(rider->id);
  policy_->Leave(*rider, Now(), actions_, lost, next);
  if (scenario_.clients[client].comes_again && is_alone) {
    Post(1 + Random(20), What::kJoin, static_cast<int64_t>(client));
  }
}

}  // namespace ditserve::simulation
