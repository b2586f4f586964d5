#ifndef DITSERVE_CORE_RESIDENCY_POLICY_KEEP_PLAN_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_KEEP_PLAN_H_

#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/types/span.h"
#include "core/placement/route.h"
#include "core/storage/module.h"

namespace ditserve {

// In the order of this, from 0 to below 1, modules are spread evenly over a sweep wherever the order is cut off.
double KeepRank(ModuleIndex module);

// What one rider's profile lets stay.
struct KeepWish {
  static constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

  int model;  // Riders of a model share copies.
  const std::vector<Route>* routes;
  int64_t limited_bytes = kUnlimited;  // The most that may stay at its limited stops.
};

// Which copies stay between their uses.
struct KeepPlan {
  std::vector<std::vector<uint32_t>> kept;  // By wish and module: bit i is set where the copy at stop i stays.
  bool complete = true;                     // Every wish finds every module where operations can read it.
};

// Chooses, of all copies that the wishes let stay, those for which there is room.
//
// On a sweep that does not fit, whichever copies stay save as many bytes: so those are chosen that leave what must be
// moved spread evenly, so that moving always has computing to hide behind. The order of preference does not depend on
// the room, so that a little more or less changes little. Copies that operations can read come first; a copy behind one
// of those comes last.
//
// `room_bytes`: the device's and the host's. `in_host_memory`: operations read host copies in place.
KeepPlan PlanKept(absl::Span<const KeepWish> wishes, std::array<int64_t, 2> room_bytes, bool in_host_memory);

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_KEEP_PLAN_H_
