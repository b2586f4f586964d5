#include "tests/simulation/world.h"

#include <algorithm>
#include <cstdio>
#include <tuple>

#include "absl/strings/str_cat.h"

namespace ditserve::simulation {
namespace {

constexpr int kFailurePercent = 3;
constexpr int kRefusalPercent = 6;

}  // namespace

World::World(const Scenario& scenario, uint64_t seed) : scenario_(scenario), random_(seed * 31 + 7) {
  const auto leads = [parents = scenario.parents](FormId from, FormId to) {
    for (int form = to; form >= 0; form = parents[static_cast<size_t>(form)]) {
      if (form == from) return true;
    }
    return false;
  };
  policy_ =
      std::make_unique<Policy>(scenario.options, scenario.devices, scenario.fixed_bytes, scenario.budget_bytes, leads);
  for (const auto& modules : scenario.weights) policy_->AddWeights(modules);
  computing_.assign(scenario.devices.size(), -1);
  books_.resize(scenario.budget_bytes.size());
  over_since_.resize(books_.size());
  before_.resize(books_.size());
  for (size_t i = 0; i < books_.size(); ++i) before_[i] = books_[i].booked = scenario.fixed_bytes[i];
  for (size_t i = 0; i < scenario.clients.size(); ++i) {
    Post(scenario.clients[i].joins_at, What::kJoin, static_cast<int64_t>(i));
  }
  if (scenario.faults_until > 0) Post(Random(500), What::kDisturb, 0);
}

void World::Post(int64_t in, What what, int64_t of, Memory memory, int64_t bytes) {
  events_.push({now_ + in, order_++, what, of, memory, bytes});
}

absl::Status World::Wrong(const std::string& what) const {
  return absl::InternalError(absl::StrCat(what, " (at ", now_, ", step ", steps_, ")"));
}

bool World::AnyLeft() const {
  for (const auto& [id, ride] : rides_) {
    if (!scenario_.clients[ride.client].comes_again) return true;
  }
  return false;
}

absl::Status World::Run(int64_t most_steps) {
  int64_t to_come = 0;
  for (const Scenario::Client& client : scenario_.clients) to_come += !client.comes_again;
  while (true) {
    if (events_.empty()) {
      if (rides_.empty()) return absl::OkStatus();
      if (Faulty()) {
        BecomeQuiet();
        if (absl::Status status = Apply(); !status.ok()) return status;
        continue;
      }
      return Wrong("nothing will happen any more, and riders wait");
    }
    const Event event = events_.top();
    events_.pop();
    if (event.what == What::kTick && event.time != tick_at_) continue;
    now_ = event.time;
    ++steps_;
    if (event.what == What::kJoin && !scenario_.clients[static_cast<size_t>(event.of)].comes_again) --to_come;
    if (absl::Status status = Handle(event); !status.ok()) return status;
    if (Faulty() && steps_ > scenario_.faults_until) BecomeQuiet();
    if (absl::Status status = Apply(); !status.ok()) return status;
    if (absl::Status status = Check(); !status.ok()) return status;
    if (to_come == 0 && !AnyLeft()) return absl::OkStatus();
    if (steps_ >= most_steps) {
      cut_off_ = true;
      return absl::OkStatus();
    }
  }
}

absl::Status World::Handle(const Event& event) {
  switch (event.what) {
    case What::kJoin:
      Join(static_cast<size_t>(event.of));
      break;
    case What::kCancel:
      if (const auto ride = rides_.find(event.of); ride != rides_.end() && !ride->second.over) {
        policy_->Cancel(*ride->second.rider, absl::CancelledError("told so"), Now(), actions_);
      }
      break;
    case What::kOperationEnds: {
      Ride& ride = rides_.at(event.of);
      Pin pin = *std::move(ride.pin);
      ride.pin.reset();
      ride.computing = false;
      computing_[static_cast<size_t>(DeviceOf(ride.rider->itinerary->device))] = -1;
      --held_[pin.copy()->id];
      policy_->Release(*ride.rider, std::move(pin), absl::Microseconds(event.bytes), Now(), actions_);
      if (ride.rider->passed_all()) ride.over = true;
      if (!ride.over) AcquireNext(event.of);
      break;
    }
    case What::kEnqueued: {
      Loading& loading = loads_.at(event.of);
      if (loading.refused) {
        Refuse(event.of);
      } else if (Faulty() && Random(100) < kFailurePercent) {
        Loading failed = std::move(loading);
        loads_.erase(event.of);
        if (failed.load.source != nullptr) --held_[failed.load.source->id];
        policy_->Failed(event.of, absl::UnavailableError("failed"), Now(), actions_);
      } else {
        loading.enqueued = true;
        Post(scenario_.late_finish ? Random(scenario_.transfer) : 0, What::kFinished, event.of);
        policy_->Enqueued(event.of, Now(), actions_);
      }
      break;
    }
    case What::kFinished: {
      const Loading finished = std::move(loads_.at(event.of));
      loads_.erase(event.of);
      if (finished.load.source != nullptr) --held_[finished.load.source->id];
      policy_->Finished(event.of, Now(), actions_);
      break;
    }
    case What::kFreed:
      books_[Index(event.memory)].leaving -= event.bytes;
      books_[Index(event.memory)].booked -= event.bytes;
      policy_->Freed(event.memory, event.bytes, Now(), actions_);
      break;
    case What::kDisturb:
      if (Faulty()) Disturb();
      break;
    case What::kTick:
      tick_at_ = -1;
      policy_->Tick(Now(), actions_);
      break;
  }
  return absl::OkStatus();
}

void World::Refuse(LoadId id) {
  const Loading refused = std::move(loads_.at(id));
  loads_.erase(id);
  Memory memory = refused.load.targets.back()->key.memory;
  for (const Copy* target : refused.load.targets) {
    if (target->grown_bytes > 0 && !IsHost(target->key.memory)) memory = target->key.memory;
  }
  std::vector<int64_t> lost(books_.size());
  for (const Copy* target : refused.load.targets) {
    if (target->key.memory == memory && target->grown_bytes > 0) lost[Index(memory)] += target->bytes;
  }
  books_[Index(memory)].cached -= lost[Index(memory)];
  books_[Index(memory)].booked -= lost[Index(memory)];
  if (refused.load.source != nullptr) --held_[refused.load.source->id];
  policy_->Refused(id, memory, lost, absl::ResourceExhaustedError("refused"), Now(), actions_);
}

void World::Join(size_t client) {
  const Scenario::Client& about = scenario_.clients[client];
  absl::StatusOr<PolicyRider*> rider = policy_->Join(about.request, Now(), actions_);
  if (!rider.ok()) {
    if (about.comes_again) Post(1 + Random(500), What::kJoin, static_cast<int64_t>(client));
    return;
  }
  const int64_t id = next_ride_++;
  rides_[id] = {client, *rider};
  ride_of_[*rider] = id;
  if (about.cancels_at >= 0) Post(std::max<int64_t>(0, about.cancels_at - now_), What::kCancel, id);
}

void World::Disturb() {
  const auto some = static_cast<Memory>(Random(static_cast<int64_t>(books_.size())));
  const int64_t budget = scenario_.budget_bytes[Index(some)];
  const int64_t kind = Random(10);
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

// Nothing goes wrong any more; what a lasting fault left behind stays: a system that gives less than the budget.
void World::BecomeQuiet() {
  quiet_ = true;
  quiet_at_ = now_;
  for (size_t i = 0; i < books_.size(); ++i) {
    policy_->SetPressure(static_cast<Memory>(i), MemoryBudget::kUnlimited, Now(), actions_);
  }
}

absl::Status World::Apply() {
  // What an action leads to may lead to more of them.
  do {
    Actions actions = std::move(actions_);
    actions_.clear();
    std::vector<int64_t> began;
    for (Action& action : actions) {
      if (auto* load = std::get_if<StartLoad>(&action)) {
        if (absl::Status status = Start(*load); !status.ok()) return status;
      } else if (const auto* drop = std::get_if<DropCopy>(&action)) {
        if (held_[drop->id] != 0) return Wrong(absl::StrCat("copy ", drop->id, " goes while it is read"));
        Books& books = books_[Index(copies_.at(drop->id).memory)];
        books.copies -= copy_bytes_.at(drop->id);
        books.cached += copy_bytes_.at(drop->id);
        copies_.erase(drop->id);
      } else if (const auto* trim = std::get_if<TrimCache>(&action)) {
        Books& books = books_[Index(trim->memory)];
        if (trim->bytes > books.cached) return Wrong("more is given back than the cache has");
        books.cached -= trim->bytes;
        books.leaving += trim->bytes;
        const int64_t first = Random(2) == 0 ? trim->bytes : Random(trim->bytes);
        if (first > 0) Post(Random(scenario_.freeing + 1), What::kFreed, 0, trim->memory, first);
        if (first < trim->bytes)
          Post(Random(scenario_.freeing + 1), What::kFreed, 0, trim->memory, trim->bytes - first);
      } else if (auto* grant = std::get_if<Grant>(&action)) {
        Ride& ride = rides_.at(ride_of_.at(grant->rider));
        if (ride.pin) return Wrong("a second copy is granted");
        const Copy& copy = *grant->pin.copy();
        if (!copy.ready()) return Wrong("a copy is granted that is not there");
        ++held_[copy.id];
        ride.pin = std::move(grant->pin);
        ride.granted_at = now_;
      } else if (const auto* begin = std::get_if<Begin>(&action)) {
        began.push_back(ride_of_.at(begin->rider));
      } else if (const auto* end = std::get_if<End>(&action)) {
        rides_.at(ride_of_.at(end->rider)).over = true;
      }
    }
    if (absl::Status status = BookActivations(); !status.ok()) return status;
    for (const int64_t id : began) {
      if (!rides_.at(id).over) AcquireNext(id);
    }
    std::vector<int64_t> ids;
    for (const auto& [id, ride] : rides_) ids.push_back(id);
    for (const int64_t id : ids) LeaveIfOver(id);
    for (size_t device = 0; device < computing_.size(); ++device) Compute(static_cast<int>(device));
  } while (!actions_.empty());
  if (absl::Status status = BookActivations(); !status.ok()) return status;
  const absl::Duration next = policy_->NextTick(Now());
  if (next != absl::InfiniteDuration()) {
    const int64_t at = std::max(absl::ToInt64Microseconds(next), now_ + 1);
    if (tick_at_ < 0 || at < tick_at_) {
      tick_at_ = at;
      events_.push({at, order_++, What::kTick, 0});
    }
  }
  return absl::OkStatus();
}

absl::Status World::BookActivations() {
  for (size_t i = 0; i < books_.size(); ++i) {
    const int64_t activations = policy_->budget(static_cast<Memory>(i)).activation_bytes;
    books_[i].booked += activations - books_[i].activations;
    books_[i].activations = activations;
    if (absl::Status status = CheckRoom(static_cast<Memory>(i), before_[i]); !status.ok()) return status;
    before_[i] = books_[i].booked;
  }
  return absl::OkStatus();
}

absl::Status World::Start(StartLoad& load) {
  int64_t grown = 0;
  for (Copy* target : load.targets) {
    for (const auto& [id, key] : copies_) {
      if (key == target->key) return Wrong("what is there is loaded again");
    }
    Books& books = books_[Index(target->key.memory)];
    const int64_t reused = target->bytes - target->grown_bytes;
    if (reused > books.cached) return Wrong("more is used again than the cache has");
    books.cached -= reused;
    books.copies += target->bytes;
    books.booked += target->grown_bytes;
    copies_[target->id] = target->key;
    copy_bytes_[target->id] = target->bytes;
    if (!IsHost(target->key.memory)) grown += target->grown_bytes;
    if (load.source != nullptr && load.source->id == target->id) return Wrong("a copy is made from itself");
    moved_bytes_ += target->bytes;
  }
  if (load.source != nullptr) {
    if (!load.source->ready() && !copies_.contains(load.source->id)) return Wrong("the source is not there");
    ++held_[load.source->id];
  }
  if (trace_) {
    std::printf("%ld load %ld of %d.%d for device %d, %ld bytes, from %s\n", now_, load.load, load.weights, load.module,
                DeviceOf(load.device), load.targets.back()->bytes,
                load.source == nullptr            ? "disk"
                : IsHost(load.source->key.memory) ? "host"
                                                  : "device");
  }
  const Memory memory = load.targets.back()->key.memory;
  const bool over = scenario_.system_bytes > 0 && !IsHost(memory) && grown > 0 &&
                    books_[Index(memory)].booked > scenario_.system_bytes;
  const int64_t slow = Random(4) == 0 ? scenario_.transfer : 1 + Random(scenario_.transfer);
  const bool refused = over || (grown > 0 && Faulty() && Random(100) < kRefusalPercent);
  Post(slow, What::kEnqueued, load.load);
  loads_[load.load] = {load, refused};
  return absl::OkStatus();
}

absl::Status World::CheckRoom(Memory memory, int64_t before) const {
  const int64_t booked = books_[Index(memory)].booked;
  const int64_t force = policy_->budget(memory).force_bytes();
  if (booked <= force || booked <= before) return absl::OkStatus();
  return Wrong(absl::StrCat("memory ", Index(memory), " grows to ", booked, " bytes beyond the ", force, " in force"));
}

void World::AcquireNext(int64_t id) {
  Ride& ride = rides_.at(id);
  ride.pending_since = now_;
  absl::StatusOr<std::optional<Pin>> pin = policy_->Acquire(*ride.rider, ride.rider->next, Now(), actions_);
  if (!pin.ok()) {
    ride.over = true;
  } else if (*pin) {
    ++held_[(*pin)->copy()->id];
    ride.pin = *std::move(pin);
    ride.granted_at = now_;
  }
}

// The executor: of those who have a copy, who waited long goes first, then by priority and what they had of it.
void World::Compute(int device) {
  if (computing_[static_cast<size_t>(device)] >= 0) return;
  Ride* first = nullptr;
  int64_t first_id = -1;
  const int64_t ageing = absl::ToInt64Microseconds(scenario_.options.ageing);
  const auto rank = [&](const Ride& ride) {
    const bool aged = now_ - ride.granted_at >= ageing;
    return std::tuple(!aged, aged ? ride.granted_at : 0, ride.rider->priority, ride.rider->attained, ride.rider->id);
  };
  for (auto& [id, ride] : rides_) {
    if (!ride.pin || DeviceOf(ride.rider->itinerary->device) != device) continue;
    if (first == nullptr || rank(ride) < rank(*first)) first = &ride, first_id = id;
  }
  if (first == nullptr) return;
  first->computing = true;
  computing_[static_cast<size_t>(device)] = first_id;
  const int64_t took = 1 + Random(scenario_.clients[first->client].operation);
  Post(took, What::kOperationEnds, first_id, Memory::kHost, took);
}

void World::LeaveIfOver(int64_t id) {
  Ride& ride = rides_.at(id);
  if (!ride.over || ride.computing) return;
  if (ride.pin) {
    --held_[ride.pin->copy()->id];
    policy_->Unused(*std::move(ride.pin), Now(), actions_);
  }
  PolicyRider* const rider = ride.rider;
  const size_t client = ride.client;
  ride_of_.erase(rider);
  rides_.erase(id);
  policy_->Leave(*rider, Now(), actions_);
  if (scenario_.clients[client].comes_again) Post(1 + Random(20), What::kJoin, static_cast<int64_t>(client));
}

absl::Status World::Check() {
  if (absl::Status status = policy_->Check(); !status.ok()) return Wrong(std::string(status.message()));
  for (size_t i = 0; i < books_.size(); ++i) {
    const MemoryBudget& budget = policy_->budget(static_cast<Memory>(i));
    const Books& books = books_[i];
    if (books.copies != budget.copy_bytes || books.cached != budget.cached_bytes ||
        books.leaving != budget.leaving_bytes || books.booked != budget.used_bytes()) {
      return Wrong(absl::StrCat("memory ", i, ": the books differ: copies ", books.copies, " ", budget.copy_bytes,
                                ", cached ", books.cached, " ", budget.cached_bytes, ", leaving ", books.leaving, " ",
                                budget.leaving_bytes, ", all ", books.booked, " ", budget.used_bytes()));
    }
  }
  for (const auto& copy : policy_->copies().slots()) {
    if (copy != nullptr && held_[copy->id] > 0 && copy->IsEvictable()) return Wrong("what is read is taken for free");
  }
  return Faulty() ? absl::OkStatus() : CheckWaits();
}

absl::Status World::CheckWaits() {
  int64_t riders = 0;
  for (const auto& [id, ride] : rides_) riders += ride.rider->admitted;
  most_riders_ = std::max(most_riders_, riders);
  const int64_t spare = scenario_.options.max_riders;
  for (size_t i = 0; i < scenario_.devices.size(); ++i) {
    const Memory memory = DeviceMemory(static_cast<int>(i));
    absl::Duration bound =
        policy_->LivenessBound(memory, absl::Microseconds(scenario_.transfer), absl::Microseconds(scenario_.operation),
                               absl::Microseconds(scenario_.freeing));
    static_cast<void>(spare);
    if (scenario_.system_bytes > 0) bound += 8 * bound;
    for (const auto& [id, ride] : rides_) {
      if (ride.rider->itinerary->device != memory || !ride.rider->pending) continue;
      const int64_t waits = now_ - std::max(ride.pending_since, quiet_at_);
      const double share = static_cast<double>(waits) / static_cast<double>(absl::ToInt64Microseconds(bound));
      worst_wait_ = std::max(worst_wait_, share);
      if (share > 1)
        return Wrong(absl::StrCat("rider ", ride.rider->id, " waits ", waits, " at module ", ride.rider->next,
                                  ", more than the bound of ", absl::ToInt64Microseconds(bound)));
    }
    const MemoryBudget& budget = policy_->budget(memory);
    if (budget.used_bytes() <= budget.force_bytes()) {
      over_since_[Index(memory)] = now_;
    } else if (now_ - std::max(over_since_[Index(memory)], quiet_at_) > absl::ToInt64Microseconds(bound)) {
      return Wrong("a budget is still exceeded");
    }
  }
  return absl::OkStatus();
}

void World::Dump() const {
  for (size_t i = 0; i < books_.size(); ++i) {
    const MemoryBudget& b = policy_->budget(static_cast<Memory>(i));
    std::printf(
        " memory %zu: configured %ld lowered %ld force %ld used %ld fixed %ld activations %ld widest %ld copies %ld "
        "cached %ld leaving %ld\n",
        i, b.configured_bytes, b.lowered_bytes, b.force_bytes(), b.used_bytes(), b.fixed_bytes, b.activation_bytes,
        b.widest_bytes, b.copy_bytes, b.cached_bytes, b.leaving_bytes);
  }
  for (const auto& [id, ride] : rides_) {
    const PolicyRider& r = *ride.rider;
    std::printf(
        " rider %ld client %zu weights %d device %d stage %d next %d/%d pending %d since %ld priority %d activations "
        "%ld limit %ld pin %d computing %d over %d after %ld again %d load_error %d\n",
        r.id, ride.client, r.itinerary->weights, DeviceOf(r.itinerary->device), static_cast<int>(r.stage), r.next,
        r.itinerary->modules(), r.pending, absl::ToInt64Microseconds(r.since), static_cast<int>(r.priority),
        r.activation_bytes, r.itinerary->limit_bytes.value_or(-1), ride.pin.has_value(), ride.computing, ride.over,
        r.after != nullptr ? r.after->id : -1, scenario_.clients[ride.client].comes_again, r.load_error.has_value());
  }
  for (const auto& copy : policy_->copies().slots()) {
    if (copy == nullptr) continue;
    std::printf(
        " copy %d of %d.%d form %d memory %zu bytes %ld ready %d evictable %d doomed %d streams %d used %d rests %d\n",
        copy->id, copy->key.weights, copy->key.module, copy->key.form, Index(copy->key.memory), copy->bytes,
        copy->ready(), copy->IsEvictable(), copy->doomed, copy->streams, copy->used, copy->rests);
  }
}

absl::Status RunSeed(uint64_t seed, int64_t most_steps, int64_t* steps, bool* cut_off, double* worst_wait, bool trace) {
  World world(MakeScenario(seed), seed);
  if (trace) world.Trace();
  const absl::Status status = world.Run(most_steps);
  if (trace) world.Dump();
  *steps = world.steps();
  *cut_off = world.cut_off();
  *worst_wait = world.worst_wait();
  return status;
}

}  // namespace ditserve::simulation
