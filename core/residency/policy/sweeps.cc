#include "core/residency/policy/sweeps.h"

#include <algorithm>
#include <limits>

#include "core/residency/policy/keep_plan.h"

namespace ditserve {
namespace {

// Riders that can live off the same copies stay together: one that is ahead takes no room that one behind could use
// sooner. But it is not held back by a slower one: only until that one has computed for so many modules more.
constexpr int kPatienceModules = 8;

constexpr double kAssumedPaceSeconds = 1e-3;

// More than any rider's: what nobody uses goes first.
constexpr double kNoUse = 1e12;
// What stands behind a copy that is nearer serves nobody while that one stays.
constexpr double kShadowed = 1e9;

bool EqualRoutes(const std::vector<Route>& a, const std::vector<Route>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Route& x, const Route& y) {
    return x.stops == y.stops && x.rest == y.rest && x.limited == y.limited && x.compute == y.compute;
  });
}

}  // namespace

bool Itinerary::Computes(const CopyKey& key) const {
  return key.weights == weights && route(key.module).compute == key.form &&
         (key.memory == device || (in_host_memory && key.memory == Memory::kHost));
}

int Itinerary::StopOf(const CopyKey& key) const {
  if (key.weights != weights) return -1;
  const std::vector<Stop>& stops = route(key.module).stops;
  for (size_t i = 0; i < stops.size(); ++i) {
    if (stops[i].form == key.form && MemoryOf(stops[i].tier) == key.memory) return static_cast<int>(i);
  }
  return -1;
}

Itinerary& Sweeps::Intern(WeightsId weights, Memory device, bool in_host_memory, std::vector<Route> routes,
                          std::optional<int64_t> limit_bytes) {
  Itinerary* place = nullptr;  // Of those that nobody rides any more, the one that was asked for the longest ago.
  int unused = 0;
  for (Itinerary& itinerary : itineraries_) {
    if (itinerary.weights == weights && itinerary.device == device && itinerary.limit_bytes == limit_bytes &&
        EqualRoutes(itinerary.routes, routes)) {
      itinerary.asked_for = ++asked_for_;
      return itinerary;
    }
    const bool used = std::any_of(riders_.begin(), riders_.end(),
                                  [&](const PolicyRider& rider) { return rider.itinerary == &itinerary; });
    if (used) continue;
    ++unused;
    if (place == nullptr || itinerary.asked_for < place->asked_for) place = &itinerary;
  }
  // Limits are the client's, and there is no end of them.
  if (unused < kRemembered) {
    place = &itineraries_.emplace_back();
    place->id = static_cast<int>(pace_seconds_.size());
    pace_seconds_.push_back(0);
  }
  Itinerary& itinerary = *place;
  itinerary = {itinerary.id, weights, device, in_host_memory, std::move(routes), limit_bytes, ++asked_for_};
  pace_seconds_[static_cast<size_t>(itinerary.id)] = 0;
  itinerary.computable = ModuleSet(itinerary.modules());
  itinerary.places.push_back(0);
  for (ModuleIndex i = 0; i < itinerary.modules(); ++i) {
    const Route& route = itinerary.route(i);
    itinerary.widest_bytes = std::max(itinerary.widest_bytes, route.compute_bytes);
    itinerary.computable.Set(i, !route.taken() || FindComputable(itinerary, i) != nullptr);
    itinerary.places.push_back(itinerary.places.back() + (route.taken() ? 1 : 0));
  }
  return itinerary;
}

Copy* Sweeps::FindComputable(const Itinerary& itinerary, ModuleIndex module) const {
  Copy* found = nullptr;
  for (Copy* copy : copies_.Of(itinerary.weights, module)) {
    if (!itinerary.Computes(copy->key)) continue;
    if (copy->ready() && !copy->doomed) return copy;
    if (found == nullptr || copy->ready()) found = copy;
  }
  return found;
}

void Sweeps::CopyChanged(const CopyKey& key, bool came) {
  for (Itinerary& itinerary : itineraries_) {
    if (!itinerary.Computes(key)) continue;
    itinerary.computable.Set(key.module, came || FindComputable(itinerary, key.module) != nullptr);
  }
}

bool Sweeps::Needs(const PolicyRider& rider, const CopyKey& key) {
  return rider.rides() && rider.next <= key.module && rider.itinerary->Computes(key);
}

bool Sweeps::IsNeeded(const Copy& copy) const {
  return std::any_of(riders_.begin(), riders_.end(), [&](const PolicyRider& rider) {
    return Needs(rider, copy.key) && (rider.riding() || !copy.used);
  });
}

bool Sweeps::IsClaimed(const CopyKey& key) const {
  return std::any_of(itineraries_.begin(), itineraries_.end(),
                     [&](const Itinerary& itinerary) { return itinerary.riders > 0 && itinerary.StopOf(key) >= 0; });
}

int64_t Sweeps::Distance(const PolicyRider& rider, ModuleIndex module) {
  const Itinerary& itinerary = *rider.itinerary;
  const int64_t ahead = itinerary.place(module) - itinerary.place(rider.next);
  const Itinerary* const before = rider.after != nullptr ? rider.after->itinerary : nullptr;
  const int64_t until_begun = before != nullptr ? before->modules_taken() - before->place(rider.after->next) : 0;
  return until_begun + (module >= rider.next ? ahead : ahead + itinerary.modules_taken());
}

double Sweeps::SecondsUntil(const PolicyRider& rider, ModuleIndex module) const {
  return static_cast<double>(Distance(rider, module)) * pace_seconds(*rider.itinerary);
}

double Sweeps::NextUse(const Copy& copy) const {
  double nearest = std::numeric_limits<double>::max();
  for (const PolicyRider& rider : riders_) {
    if (!rider.rides() || rider.itinerary->weights != copy.key.weights) continue;
    if (!rider.itinerary->Computes(copy.key) && rider.itinerary->StopOf(copy.key) < 0) continue;
    nearest = std::min(nearest, SecondsUntil(rider, copy.key.module));
  }
  // Without a rider all are as far; then what stays is to be spread evenly.
  if (nearest == std::numeric_limits<double>::max()) nearest = kNoUse * (1 + KeepRank(copy.key.module));
  if (copy.key.memory != Memory::kHost) return nearest;
  const std::vector<Copy*>& others = copies_.Of(copy.key.weights, copy.key.module);
  const bool shadowed = std::any_of(others.begin(), others.end(), [](const Copy* other) {
    return other->key.memory != Memory::kHost && other->used;
  });
  return shadowed ? nearest + kShadowed : nearest;
}

bool Sweeps::IsLed(const PolicyRider& rider, const PolicyRider& behind, ModuleIndex module) {
  if (!behind.riding() || behind.itinerary->weights != rider.itinerary->weights) return false;
  if (behind.itinerary->device != rider.itinerary->device || behind.next >= rider.next) return false;
  if (behind.itinerary->route(module).compute != rider.itinerary->route(module).compute) return false;
  if (behind.priority > rider.priority) return false;
  return behind.attained_seconds() - rider.attained_seconds() <= kPatienceModules * behind.alike->module_seconds();
}

double Sweeps::pace_seconds(const Itinerary& itinerary) const {
  const double learned = pace_seconds_[static_cast<size_t>(itinerary.id)];
  return learned > 0 ? learned : kAssumedPaceSeconds;
}

void Sweeps::LearnPace(const Itinerary& itinerary, absl::Duration lap) {
  pace_seconds_[static_cast<size_t>(itinerary.id)] =
      absl::ToDoubleSeconds(lap) / std::max(itinerary.modules_taken(), 1);
}

}  // namespace ditserve
