#ifndef DITSERVE_CORE_RESIDENCY_POLICY_SWEEPS_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_SWEEPS_H_

#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/base/memory.h"
#include "core/base/priority.h"
#include "core/placement/route.h"
#include "core/residency/policy/copy_store.h"
#include "core/residency/policy/join_policy.h"
#include "core/residency/policy/module_set.h"

namespace ditserve {

// The way that riders of one profile take through one set of weights on one device, and what of it is there.
struct Itinerary {
  int id = 0;
  WeightsId weights = -1;
  Memory device = Memory::kDevice;
  bool in_host_memory = false;  // Operations read host copies in place.
  std::vector<Route> routes;
  std::optional<int64_t> limit_bytes;  // vram_limit.
  int64_t asked_for = 0;               // When last, by count.
  int64_t widest_bytes = 0;            // The largest module as operations read it.
  std::vector<int> places;             // Of each module, how many are taken before it; at the end, how many in all.

  ModuleSet computable;        // Modules of which a copy that operations can read is there or on its way, or not taken.
  std::vector<uint32_t> kept;  // What may stay, by module: bit i is set where the copy at stop i may. Empty: nothing.
  int riders = 0;              // Admitted ones.

  const Route& route(ModuleIndex module) const { return routes[static_cast<size_t>(module)]; }
  int modules() const { return static_cast<int>(routes.size()); }
  int place(ModuleIndex module) const { return places[static_cast<size_t>(module)]; }
  int modules_taken() const { return places.back(); }
  // The first from `from` on; modules() if there is none.
  ModuleIndex NextTaken(ModuleIndex from) const {
    while (from < modules() && !route(from).taken()) ++from;
    return from;
  }
  Memory MemoryOf(Tier tier) const { return tier == Tier::kDevice ? device : Memory::kHost; }
  // Whether its operations can read such a copy.
  bool Computes(const CopyKey& key) const;
  // The stop at which it would keep such a copy; -1 if there is none.
  int StopOf(const CopyKey& key) const;
  bool MayStay(ModuleIndex module, int stop) const {
    return !kept.empty() && stop >= 0 && (kept[static_cast<size_t>(module)] >> stop & 1) != 0;
  }
};

// What computing a module takes riders that are alike: of one itinerary, with as many bytes of activations. Who is
// ahead of them finds weights in the processor's caches that those behind do not, so that its own modules would tell
// that it is due less than they are, and take it farther ahead.
struct RidersAlike {
  double seconds = 0;  // What they computed, those who left too.
  int64_t modules = 0;

  double module_seconds() const { return modules > 0 ? seconds / static_cast<double>(modules) : 0; }
};

// A request as the policy sees it.
struct PolicyRider {
  enum class Stage : uint8_t {
    kWaiting,   // For admission.
    kAdmitted,  // For the sweep before it to end: its activations are reserved.
    kRiding,
    kEnding,  // It was cancelled or failed, and acquires nothing any more.
  };

  RiderId id = 0;
  Itinerary* itinerary = nullptr;
  int64_t activation_bytes = 0;  // That it holds.
  int64_t host_bytes = 0;        // Beside these, of the host's memory: none where operations compute in that.
  int64_t pass_bytes = 0;        // That its pass computes in: of its own or, before it began, of its lap before.
  int64_t widest_bytes = 0;      // The largest module, as operations read it, of its pass and of its laps before.
  bool is_lap = false;           // It goes on where another ended, in the memory that that one had.
  bool behind = false;           // And that one is still there.
  Priority priority = Priority::kInteractive;
  JoinPolicy join = JoinPolicy::kAuto;

  Stage stage = Stage::kWaiting;
  absl::Status ended;                  // Why it ends.
  const PolicyRider* after = nullptr;  // It begins when this one has passed its last module.
  ModuleIndex next = 0;                // The module it acquires next, of those that its itinerary takes.
  // The first that it may pass over, until it acquires one from there on: those are not loaded for it.
  std::optional<ModuleIndex> undecided;
  int passed_over = 0;   // Modules that its itinerary takes and it did not.
  bool pending = false;  // It waits for that module.
  absl::Duration since;  // From when on.
  absl::Duration debt;   // What it waited before in this lap.
  absl::Duration joined;
  absl::Duration computing;  // What it has computed.
  absl::Duration begun;
  absl::Duration place_since;  // As `begun`, of the first of its laps.
  double entered_at = 0;       // What the least of the others had attained when it began.
  std::shared_ptr<RidersAlike> alike = std::make_shared<RidersAlike>();
  bool admitted = false;                                           // Its activations are reserved.
  bool refused = false;                                            // Memory for the module it waits for was refused.
  int refusals = 0;                                                // So often with nothing left that could make room.
  std::optional<std::pair<ModuleIndex, absl::Status>> load_error;  // A module ahead that could not be loaded.
  std::optional<JoinCosts> join_costs;                             // Predicted, where it found others.
  bool waited_for_sweep = false;

  // It has modules to pass, now or after the sweep before it.
  bool rides() const { return stage == Stage::kAdmitted || stage == Stage::kRiding; }
  bool riding() const { return stage == Stage::kRiding; }
  // Whether it counts as one who rides beside others: not while the lap before it does.
  bool takes_place() const { return admitted && !behind; }
  bool passed_all() const { return next >= itinerary->modules(); }
  // Its place among those that compute: seconds of the executor's time, in fair shares.
  double attained_seconds() const {
    return entered_at + (itinerary->place(next) - passed_over) * alike->module_seconds();
  }
};

// Who rides, how far, on which routes, and what that says of copies.
//
// Thread safety: thread-compatible.
class Sweeps {
 public:
  // Segments of what streams: a module that is computed with, and two that arrive.
  static constexpr int kAheadModules = 3;
  // A rider with a limit has at most so many ahead of it: one that is computed with, one that arrives.
  static constexpr int kLimitedAheadModules = 2;
  // So many itineraries that nobody rides keep their pace.
  static constexpr int kRemembered = 8;

  explicit Sweeps(const CopyStore& copies) : copies_(copies) {}

  // The itinerary of such routes: one for all riders of equal ones.
  Itinerary& Intern(WeightsId weights, Memory device, bool in_host_memory, std::vector<Route> routes,
                    std::optional<int64_t> limit_bytes);
  std::deque<Itinerary>& itineraries() { return itineraries_; }
  const std::deque<Itinerary>& itineraries() const { return itineraries_; }

  // In order of arrival.
  std::list<PolicyRider>& riders() { return riders_; }
  const std::list<PolicyRider>& riders() const { return riders_; }

  // Keeps Itinerary::computable. To be told of each copy that comes or has gone.
  void CopyCame(const CopyKey& key) { CopyChanged(key, true); }
  void CopyWent(const CopyKey& key) { CopyChanged(key, false); }

  // A copy that the rider's operations can read, a ready one first; null if there is none.
  Copy* FindComputable(const Itinerary& itinerary, ModuleIndex module) const;

  // Whether the rider has yet to compute with such a copy in this pass.
  static bool Needs(const PolicyRider& rider, const CopyKey& key);
  // Whether a rider does; one that has not begun needs what was loaded for it.
  bool IsNeeded(const Copy& copy) const;
  // Whether a profile with riders would keep such a copy, but for limits and room.
  bool IsClaimed(const CopyKey& key) const;

  // Modules that the rider takes until it is at `module`, in this pass or the next.
  static int64_t Distance(const PolicyRider& rider, ModuleIndex module);
  // Predicted seconds until then.
  double SecondsUntil(const PolicyRider& rider, ModuleIndex module) const;
  // Predicted seconds until the copy's next use; more than any such for what no rider uses.
  double NextUse(const Copy& copy) const;

  // Whether `behind` can live off what `rider` loads, and is not much slower.
  static bool IsLed(const PolicyRider& rider, const PolicyRider& behind, ModuleIndex module);

  // Seconds that a rider takes a module, predicted.
  double pace_seconds(const Itinerary& itinerary) const;
  // Of a lap that took all its modules.
  void LearnPace(const Itinerary& itinerary, absl::Duration lap);

 private:
  void CopyChanged(const CopyKey& key, bool came);

  const CopyStore& copies_;
  std::deque<Itinerary> itineraries_;
  int64_t asked_for_ = 0;
  std::vector<double> pace_seconds_;  // By itinerary; 0: not known yet.
  std::list<PolicyRider> riders_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_SWEEPS_H_
