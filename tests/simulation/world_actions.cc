// What the policy decides is carried out, and what must hold afterwards is checked.
#include <algorithm>
#include <cinttypes>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "core/base/error_details.h"
#include "tests/simulation/world.h"

namespace ditserve::simulation {
namespace {

constexpr int kRefusalPercent = 6;

}  // namespace

absl::Status World::Wrong(const absl::Status& what) const {
  return absl::InternalError(absl::StrCat(std::string(what.message()), " (at ", now_, ", step ", steps_, ")"));
}

absl::Status World::Apply() {
  // What an action leads to may lead to more of them.
  do {
    Actions actions = std::move(actions_);
    actions_.clear();
    std::vector<int64_t> began;
    for (Action& action : actions) {
      if (absl::Status status = Carry(action, began); !status.ok()) return status;
    }
    if (absl::Status status = books_.Settle(); !status.ok()) return status;
    for (const int64_t id : began) {
      if (!rides_.at(id).over) AcquireNext(id);
    }
    for (auto& [id, ride] : rides_) {
      if (!ride.over || ride.computing || ride.leaves) continue;
      ride.leaves = true;  // Not at once: whoever ends is told so first.
      if (ride.next_lap >= 0 && !ride.rider->passed_all()) Post(0, What::kCancel, ride.next_lap);
      Post(Random(2) == 0 ? 0 : Random(scenario_.operation), What::kLeave, id);
    }
    for (size_t device = 0; device < computing_.size(); ++device) Compute(static_cast<int>(device));
    if (!wrong_.ok()) return wrong_;
  } while (!actions_.empty());
  PostTick();
  return books_.Settle();
}

absl::Status World::Carry(Action& action, std::vector<int64_t>& began) {
  if (auto* load = std::get_if<StartLoad>(&action)) return Start(*load);
  if (const auto* drop = std::get_if<DropCopy>(&action)) return books_.Drop(drop->id);
  if (const auto* trim = std::get_if<TrimCache>(&action)) {
    if (absl::Status status = books_.Trim(trim->memory, trim->bytes); !status.ok()) return status;
    const int64_t first = Random(2) == 0 ? trim->bytes : Random(trim->bytes);
    for (const int64_t bytes : {first, trim->bytes - first}) {
      if (bytes > 0) Post(Random(scenario_.freeing + 1), What::kFreed, 0, trim->memory, bytes);
    }
    return absl::OkStatus();
  }
  if (auto* grant = std::get_if<Grant>(&action)) {
    Ride& ride = rides_.at(ride_of_.at(grant->rider));
    if (ride.pin) return absl::InternalError("a second copy is granted");
    if (absl::Status status = books_.Pinned(*grant->rider, *grant->pin.copy()); !status.ok()) return status;
    EndWait(ride);
    ride.pin = std::move(grant->pin);
    ride.granted_at = now_;
    ride.most_granted = 0;
    waits_.Granted(*grant->rider, Now());
    return absl::OkStatus();
  }
  if (const auto* admit = std::get_if<Admit>(&action)) {
    if (absl::Status status = books_.Admitted(*admit); !status.ok()) return status;
    if (!admit->rider->is_lap) waits_.Admitted(*admit->rider);
    rides_.at(ride_of_.at(admit->rider)).grown_bytes = admit->grown_bytes;
    return queue_.CheckAdmitted(*admit->rider, Now());
  }
  if (const auto* begin = std::get_if<Begin>(&action)) {
    const int64_t id = ride_of_.at(begin->rider);
    const Itinerary& itinerary = *begin->rider->itinerary;
    if (!itinerary.in_host_memory && Refuses(itinerary.device, rides_.at(id).grown_bytes)) {
      Post(Random(scenario_.transfer), What::kActivationsRefused, id);
      return absl::OkStatus();
    }
    EndWait(rides_.at(id));
    rides_.at(id).began = true;
    began.push_back(id);
    return absl::OkStatus();
  }
  return EndOf(std::get<End>(action));
}

// Who asks for what it may have is not sent away without a reason that is there.
absl::Status World::EndOf(const End& end) {
  Ride& ride = rides_.at(ride_of_.at(end.rider));
  if (ride.over) return absl::InternalError("a rider is told twice that it ends");
  ride.over = true;
  EndWait(ride);
  books_.Settled(*end.rider);
  const PolicyRider& rider = *end.rider;
  const absl::StatusCode code = end.why.code();
  if (code == absl::StatusCode::kCancelled) return absl::OkStatus();
  const bool displaced = code == absl::StatusCode::kResourceExhausted && RetryAfterOf(end.why).has_value();
  if (displaced && !rider.admitted) return absl::OkStatus();
  const bool refused = code == absl::StatusCode::kResourceExhausted && ride.refusals >= kMostRefusals;
  if (refused && !rider.admitted) return absl::OkStatus();
  // Who was not admitted may be told that it never fits; nobody else, and only by a budget that was set.
  if (code == absl::StatusCode::kFailedPrecondition && !rider.admitted) {
    if (NeverFits(ClientOf(ride))) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("rider ", rider.id, " is told that it never fits, and it would"));
  }
  // What it waits for could not be loaded, and not only before. Memory is asked for more than once.
  const bool lost = lost_ && lost_->why == code && lost_->weights == rider.itinerary->weights &&
                    lost_->module == rider.next && !displaced;
  if (lost && code == absl::StatusCode::kUnavailable) return absl::OkStatus();
  if (lost && ride.refusals >= kMostRefusals) {
    if (++lost_->refused == 1) return absl::OkStatus();
    return absl::InternalError("one refusal ends more than one rider");
  }
  return absl::InternalError(absl::StrCat("rider ", rider.id, " ends: ", std::string(end.why.message())));
}

// Who stands at a module that could not be loaded is told so; nobody else who was not told to end.
absl::Status World::CheckNotAcquired(const Ride& ride, const absl::Status& why) const {
  if (why == ride.rider->ended || ride.failed.contains(ride.rider->next)) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("rider ", ride.rider->id, " ends at module ", ride.rider->next, ": ", std::string(why.message())));
}

bool World::IsTooMuch(const Scenario::Client& client, int64_t of_device, int64_t of_host) const {
  const Policy::JoinRequest& request = client.request;
  int64_t widest = 0;
  for (const Route& route : request.routes) widest = std::max(widest, route.compute_bytes);
  const auto fixed = [this](Memory memory) { return scenario_.fixed_bytes[Index(memory)]; };
  return fixed(request.device) + request.activation_bytes + widest > of_device ||
         (request.host_bytes > 0 && fixed(Memory::kHost) + request.host_bytes > of_host);
}

bool World::NeverFits(const Scenario::Client& client) const {
  return IsTooMuch(client, policy_->budget(client.request.device).configured_bytes,
                   policy_->budget(Memory::kHost).configured_bytes);
}

absl::Status World::CheckRefusal(const Scenario::Client& client, const absl::Status& why) const {
  if (absl::IsFailedPrecondition(why)) {
    if (NeverFits(client)) return absl::OkStatus();
    return absl::InternalError("a client is told that it never fits, and it would");
  }
  if (!absl::IsResourceExhausted(why)) return absl::InternalError("a client is refused without a reason");
  int waiting = 0, less_urgent = 0;
  for (const auto& [id, ride] : rides_) {
    if (ride.rider->stage != PolicyRider::Stage::kWaiting) continue;
    ++waiting;
    less_urgent += ride.rider->priority > client.request.priority && queue_.IsPatient(*ride.rider, Now());
  }
  if (less_urgent > 0 && waiting <= scenario_.options.max_waiting) {
    return absl::InternalError("a client is refused, and less urgent ones wait that came lately");
  }
  if (waiting < scenario_.options.max_waiting) {
    return absl::InternalError("a client is refused, and there is a place in the queue");
  }
  const MemoryBudget &budget = policy_->budget(client.request.device), &host = policy_->budget(Memory::kHost);
  const bool idle = rides_.empty() && loads_.empty() && budget.leaving_bytes == 0 && host.leaving_bytes == 0;
  if (idle && !IsTooMuch(client, budget.allowed_bytes(), host.allowed_bytes())) {
    return absl::InternalError("a client is refused by an idle server");
  }
  return absl::OkStatus();
}

absl::Status World::Start(StartLoad& load) {
  std::vector<const PolicyRider*> riders;
  for (const auto& [id, ride] : rides_) {
    if (ride.rider->admitted) riders.push_back(ride.rider);
  }
  if (absl::Status status = books_.Start(load, riders); !status.ok()) return status;
  if (trace_) {
    const Copy& last = *load.targets.back();
    std::printf("%" PRId64 " load %" PRId64 " of %d.%d for device %d, %" PRId64 " bytes, from %s\n", now_, load.load,
                load.weights, load.module, DeviceOf(load.device), last.bytes,
                load.source == nullptr            ? "disk"
                : IsHost(load.source->key.memory) ? "host"
                                                  : "device");
  }
  Post(Random(4) == 0 ? scenario_.transfer : 1 + Random(scenario_.transfer), What::kEnqueued, load.load);
  loads_[load.load] = {load, RefusedBy(load)};
  return absl::OkStatus();
}

std::optional<Memory> World::RefusedBy(const StartLoad& load) {
  for (const Copy* target : load.targets) {
    if (Refuses(target->key.memory, target->grown_bytes)) return target->key.memory;
  }
  return std::nullopt;
}

bool World::Refuses(Memory memory, int64_t grown_bytes) {
  if (grown_bytes == 0) return false;
  const bool is_short = scenario_.system_bytes > 0 && memory == Memory::kDevice;
  if (is_short && books_.booked(memory) > scenario_.system_bytes) return true;
  return Faulty() && !scenario_.only_budgets && Random(100) < kRefusalPercent;
}

void World::PostTick() {
  const absl::Duration next = policy_->NextTick();
  const int64_t at = next == absl::InfiniteDuration() ? -1 : std::max(absl::ToInt64Microseconds(next), now_);
  if (at == tick_at_) return;
  tick_at_ = at;  // As told, and no earlier: who forgets what is due is not helped.
  if (at >= 0) events_.push({at, order_++, What::kTick, 0});
}

absl::Status World::Check() {
  if (steps_ % scenario_.check_every == 0) {
    if (absl::Status status = policy_->Check(); !status.ok()) return status;
    if (absl::Status status = books_.Check(policy_->sweeps().riders(), Now()); !status.ok()) return status;
  }
  if (absl::Status status = queue_.Check(Now()); !status.ok()) return status;
  if (tick_at_ != now_) {  // What is due now is decided with the tick.
    if (absl::Status status = CheckLoads(); !status.ok()) return status;
    if (absl::Status status = waits_.CheckElders(Now()); !status.ok()) return status;
  }
  if (Faulty()) return absl::OkStatus();
  ++quiet_steps_;
  if (absl::Status status = CheckExecutor(); !status.ok()) return status;
  if (pressed_) waits_.RestartAnswers();
  return waits_.Check(Now());
}

// Slots are kept to; and a link does not idle while somebody waits for what there is room for.
absl::Status World::CheckLoads() {
  for (size_t i = 0; i < scenario_.devices.size(); ++i) {
    const Memory device = DeviceMemory(static_cast<int>(i));
    int loads = 0;
    for (const auto& [id, loading] : loads_) loads += loading.load.device == device;
    if (loads > scenario_.options.max_loads) return absl::InternalError("more is loaded at once than there are slots");
    if (loads > 0 || queue_.HeadThatFits(device, Now()) != nullptr || policy_->elder(device) != nullptr) continue;
    const int64_t room = policy_->budget(device).RoomBytes(Now());
    for (const auto& [id, ride] : rides_) {
      const PolicyRider& rider = *ride.rider;
      if (!rider.pending || rider.itinerary->device != device) continue;
      if (policy_->sweeps().FindComputable(*rider.itinerary, rider.next) != nullptr) continue;
      if (room < rider.itinerary->widest_bytes) continue;
      const std::vector<Copy*>& copies = policy_->copies().Of(rider.itinerary->weights, rider.next);
      const auto arrives = [](const Copy* copy) { return !copy->ready(); };
      if (std::any_of(copies.begin(), copies.end(), arrives)) continue;  // It is made from that.
      const std::list<PolicyRider>& all = policy_->sweeps().riders();
      const auto leads = [&](const PolicyRider& other) { return Sweeps::IsLed(rider, other, rider.next); };
      if (std::any_of(all.begin(), all.end(), leads)) continue;  // Those behind come first.
      return absl::InternalError(absl::StrCat("nothing is loaded, rider ", rider.id, " waits, and there is room"));
    }
  }
  return absl::OkStatus();
}

// Our own executor keeps to what the policy's bound takes for granted.
absl::Status World::CheckExecutor() {
  int64_t riders = 1;
  for (const auto& [id, ride] : rides_) riders += ride.rider->admitted;
  const int64_t most = absl::ToInt64Microseconds(scenario_.options.ageing) + riders * scenario_.operation;
  for (auto& [id, ride] : rides_) {
    if (!ride.pin || ride.computing) continue;
    ride.most_granted = std::max(ride.most_granted, most);
    if (now_ - ride.granted_at > ride.most_granted) {
      return absl::InternalError(absl::StrCat("rider ", ride.rider->id, " has a copy for ", now_ - ride.granted_at,
                                              " and is not computed, more than ", ride.most_granted));
    }
  }
  return absl::OkStatus();
}

// Nothing happens any more: nobody may wait, and what is left is what rests.
absl::Status World::CheckEnd() const {
  if (!rides_.empty()) return Wrong(absl::InternalError("nothing will happen any more, and riders wait"));
  for (size_t i = 0; i < scenario_.budget_bytes.size(); ++i) {
    const MemoryBudget& budget = policy_->budget(static_cast<Memory>(i));
    if (budget.used_bytes() != budget.fixed_bytes + budget.copy_bytes) {
      return Wrong(absl::InternalError(absl::StrCat("memory ", i, " is not given back: ", budget.used_bytes(),
                                                    " bytes are used, of these copies ", budget.copy_bytes)));
    }
  }
  for (const auto& copy : policy_->copies().slots()) {
    if (copy == nullptr) continue;
    const bool rests =
        std::any_of(scenario_.clients.begin(), scenario_.clients.end(), [&](const Scenario::Client& client) {
          if (weights_[static_cast<size_t>(client.request.weights)] != copy->key.weights) return false;
          const Route& route = client.request.routes[static_cast<size_t>(copy->key.module)];
          if (route.rest < 0) return false;
          const Stop& stop = route.stops[static_cast<size_t>(route.rest)];
          return stop.form == copy->key.form &&
                 copy->key.memory == (stop.tier == Tier::kDevice ? client.request.device : Memory::kHost);
        });
    if (!rests) return Wrong(absl::InternalError(absl::StrCat("copy ", copy->id, " stays, where no profile rests")));
  }
  return absl::OkStatus();
}

void World::Dump() const {
  for (size_t i = 0; i < scenario_.budget_bytes.size(); ++i) {
    const MemoryBudget& b = policy_->budget(static_cast<Memory>(i));
    std::printf(" memory %zu: configured %" PRId64 " lowered %" PRId64 " force %" PRId64 " used %" PRId64
                " fixed %" PRId64 " activations %" PRId64 " widest %" PRId64 " copies %" PRId64 " cached %" PRId64
                " leaving %" PRId64 "\n",
                i, b.configured_bytes, b.lowered_bytes, b.force_bytes(), b.used_bytes(), b.fixed_bytes,
                b.activation_bytes, b.widest_bytes, b.copy_bytes, b.cached_bytes, b.leaving_bytes);
  }
  for (const auto& [id, ride] : rides_) {
    const PolicyRider& r = *ride.rider;
    std::printf(" rider %" PRId64 " client %zu weights %d device %d stage %d next %d/%d pending %d since %" PRId64
                " priority %d activations %" PRId64 " limit %" PRId64 " pin %d computing %d over %d after %" PRId64
                " refusals %d\n",
                r.id, ride.client, r.itinerary->weights, DeviceOf(r.itinerary->device), static_cast<int>(r.stage),
                r.next, r.itinerary->modules(), r.pending, absl::ToInt64Microseconds(r.since),
                static_cast<int>(r.priority), r.activation_bytes, r.itinerary->limit_bytes.value_or(-1),
                ride.pin.has_value(), ride.computing, ride.over, r.after != nullptr ? r.after->id : -1, r.refusals);
  }
  for (const auto& copy : policy_->copies().slots()) {
    if (copy == nullptr) continue;
    std::printf(" copy %d of %d.%d form %d memory %zu bytes %" PRId64
                " ready %d evictable %d doomed %d streams %d used %d rests %d\n",
                copy->id, copy->key.weights, copy->key.module, copy->key.form, Index(copy->key.memory), copy->bytes,
                copy->ready(), copy->IsEvictable(), copy->doomed, copy->streams, copy->used, copy->rests);
  }
}

}  // namespace ditserve::simulation
