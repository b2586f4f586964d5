#ifndef DITSERVE_TESTS_SIMULATION_WORLD_H_
#define DITSERVE_TESTS_SIMULATION_WORLD_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/residency/policy/policy.h"
#include "tests/simulation/books.h"
#include "tests/simulation/queue.h"
#include "tests/simulation/scenario.h"
#include "tests/simulation/waits.h"

namespace ditserve::simulation {

// The world that a policy decides in: one thread, virtual time, transfers and operations that end when the seed says.
// After each step it checks what must hold: of bytes and copies (Books), and of waiting (Waits).
class World {
 public:
  World(const Scenario& scenario, uint64_t seed);

  // Runs until all who do not come again are done, and then until nothing happens any more. What went wrong, and when;
  // OK if nothing.
  absl::Status Run(int64_t most_steps);

  int64_t steps() const { return steps_; }
  bool cut_off() const { return cut_off_; }
  // Of these steps waiting was looked at.
  int64_t quiet_steps() const { return quiet_steps_; }
  int64_t moved_bytes() const { return books_.moved_bytes(); }
  // Ticks that riders waited, all together: to begin, and for modules.
  int64_t queued() const { return queued_; }
  int64_t stalled() const { return stalled_; }
  // The longest wait as a share of its bound.
  double worst_wait() const { return waits_.worst(); }
  void Trace() { trace_ = true; }
  void Dump() const;

 private:
  enum class What : uint8_t {
    kJoin,
    kCancel,
    kOperationEnds,
    kActivationsRefused,
    kEnqueued,
    kFinished,
    kFreed,
    kLeave,
    kDisturb,
    kTick,
    kRenew
  };
  struct Event {
    int64_t time;
    int64_t order;
    What what;
    int64_t of;
    Memory memory = Memory::kHost;
    int64_t bytes = 0;
    bool operator<(const Event& other) const { return std::pair(time, order) > std::pair(other.time, other.order); }
  };
  struct Ride {
    size_t client;
    PolicyRider* rider = nullptr;
    int laps_left = 0;
    int64_t next_lap = -1;  // The ride; -1: there is none.
    int64_t lap_before = -1;
    std::optional<Pin> pin;  // Granted, not yet used.
    bool computing = false;
    bool over = false;    // It leaves as soon as it does not compute.
    bool leaves = false;  // That is on its way.
    bool began = false;
    int64_t waits_since = -1;      // To begin, then for a module; -1: it does not.
    int refusals = 0;              // Of memory for the module that it waits for, or for its activations.
    int64_t grown_bytes = 0;       // Of its activations, what the system is asked for.
    std::set<ModuleIndex> failed;  // Modules that could not be loaded while it was there.
    int64_t granted_at = 0;
    int64_t most_granted = 0;  // So long may a granted copy wait for the executor.
  };
  struct Loading {
    StartLoad load;
    std::optional<Memory> refused;
    bool enqueued = false;
  };
  // A load that came to nothing in this step.
  struct Lost {
    WeightsId weights;
    ModuleIndex module;
    absl::StatusCode why;
    int refused = 0;  // So many riders were told that there is no memory.
  };

  int64_t Random(int64_t below) {
    return below <= 0 ? 0 : static_cast<int64_t>(random_() % static_cast<uint64_t>(below));
  }
  absl::Duration Now() const { return absl::Microseconds(now_); }
  bool Faulty() const { return scenario_.faults_until > 0 && !quiet_; }
  void Post(int64_t in, What what, int64_t of, Memory memory = Memory::kHost, int64_t bytes = 0);
  const Scenario::Client& ClientOf(const Ride& ride) const { return scenario_.clients[ride.client]; }

  // --- world.cc: what happens
  absl::Status Step();
  absl::Status Handle(const Event& event);
  void Join(size_t client);
  void OperationEnds(int64_t id, int64_t took);
  void LoadEnds(LoadId id);
  void RefuseActivations(int64_t id);
  void JoinLap(int64_t id);
  void Fail(LoadId id);
  void Refuse(LoadId id, Memory memory);
  void Disturb();
  void BecomeQuiet();
  void Relieve();
  void Renew();
  void AcquireNext(int64_t id);
  // The module that a rider goes on with, which at times decides there to leave some out.
  ModuleIndex NextOf(const PolicyRider& rider);
  void EndWait(Ride& ride);
  void Compute(int device);
  void Leave(int64_t id);
  bool AnyLeft() const;

  // --- world_actions.cc: what the policy decides, and what must hold afterwards
  absl::Status Apply();
  absl::Status Carry(Action& action, std::vector<int64_t>& began);
  absl::Status Start(StartLoad& load);
  std::optional<Memory> RefusedBy(const StartLoad& load);
  bool Refuses(Memory memory, int64_t grown_bytes);
  absl::Status EndOf(const End& end);
  absl::Status CheckNotAcquired(const Ride& ride, const absl::Status& why) const;
  absl::Status CheckRefusal(const Scenario::Client& client, const absl::Status& why) const;
  // Whether the least that the client needs is more than these allow of its device's memory, or the host's.
  bool IsTooMuch(const Scenario::Client& client, int64_t of_device, int64_t of_host) const;
  bool NeverFits(const Scenario::Client& client) const;
  absl::Status Check();
  absl::Status CheckLoads();
  absl::Status CheckExecutor();
  absl::Status CheckEnd() const;
  void PostTick();
  absl::Status Wrong(const absl::Status& what) const;

  const Scenario scenario_;
  std::mt19937_64 random_, decisions_;
  bool trace_ = false;
  std::unique_ptr<Policy> policy_;
  Books books_;
  Queue queue_;
  Waits waits_;
  Actions actions_;
  absl::Status wrong_;  // Found where no status can be returned.
  int64_t now_ = 0, steps_ = 0, quiet_steps_ = 0, order_ = 0, next_ride_ = 0, tick_at_ = -1, to_come_ = 0;
  int64_t queued_ = 0, stalled_ = 0;
  bool quiet_ = false, pressed_ = false, cut_off_ = false, closing_ = false;
  std::priority_queue<Event> events_;
  std::map<int64_t, Ride> rides_;
  std::map<const PolicyRider*, int64_t> ride_of_;
  std::vector<int64_t> computing_;  // The ride, by device; -1: none.
  std::map<LoadId, Loading> loads_;
  std::optional<Lost> lost_;
  std::vector<WeightsId> weights_;  // By place in the scenario.
};

}  // namespace ditserve::simulation

#endif  // DITSERVE_TESTS_SIMULATION_WORLD_H_
