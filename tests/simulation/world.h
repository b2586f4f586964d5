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
#include "core/residency/policy.h"

namespace ditserve::simulation {

// A random case: devices, weights, riders, and what goes wrong. All of it follows from the seed.
struct Scenario {
  struct Client {
    Policy::JoinRequest request;
    int64_t joins_at = 0;     // Ticks.
    int64_t cancels_at = -1;  // -1: never.
    int64_t operation = 1;    // The longest, ticks.
    bool comes_again = false;
  };

  PolicyOptions options;
  std::vector<PolicyDevice> devices;
  std::vector<int64_t> fixed_bytes, budget_bytes;  // By Index(Memory).
  std::vector<std::vector<int64_t>> weights;       // Stored bytes of each module.
  std::vector<int> parents;                        // Of each form; -1: as stored.
  std::vector<Client> clients;

  int64_t transfer = 100;  // The longest of each, ticks.
  int64_t operation = 20;
  int64_t freeing = 30;
  bool late_finish = false;  // Transfers finish after they are enqueued.
  int64_t faults_until = 0;  // Steps; 0: nothing goes wrong.
  int64_t fault_gap = 600;   // Ticks between changes of budgets, pressure and cancellations.
  int64_t system_bytes = 0;  // The most that the system gives of a device's memory; 0: as much as the budget.
};

Scenario MakeScenario(uint64_t seed);

// The world that a policy decides in: one thread, virtual time, transfers and operations that end when the seed says.
// It keeps books of its own, and checks after each step what must hold.
class World {
 public:
  World(const Scenario& scenario, uint64_t seed);

  // Runs until all who do not come again are done. What went wrong, and when; OK if nothing.
  absl::Status Run(int64_t most_steps);

  int64_t steps() const { return steps_; }
  bool cut_off() const { return cut_off_; }
  int64_t moved_bytes() const { return moved_bytes_; }
  // The longest wait as a share of the bound.
  double worst_wait() const { return worst_wait_; }
  void Trace() { trace_ = true; }
  void Dump() const;

 private:
  enum class What : uint8_t { kJoin, kCancel, kOperationEnds, kEnqueued, kFinished, kFreed, kDisturb, kTick };
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
    std::optional<Pin> pin;  // Granted, not yet used.
    bool computing = false;
    bool over = false;  // It leaves as soon as it does not compute.
    int64_t granted_at = 0;
    int64_t pending_since = 0;
  };
  struct Loading {
    StartLoad load;
    bool refused = false;
    bool enqueued = false;
  };
  struct Books {
    int64_t booked = 0, copies = 0, cached = 0, leaving = 0, activations = 0;
  };

  int64_t Random(int64_t below) {
    return below <= 0 ? 0 : static_cast<int64_t>(random_() % static_cast<uint64_t>(below));
  }
  absl::Duration Now() const { return absl::Microseconds(now_); }
  bool Faulty() const { return scenario_.faults_until > 0 && !quiet_; }
  void Post(int64_t in, What what, int64_t of, Memory memory = Memory::kHost, int64_t bytes = 0);

  absl::Status Handle(const Event& event);
  void Join(size_t client);
  void Refuse(LoadId id);
  void Disturb();
  void BecomeQuiet();
  absl::Status Apply();
  absl::Status BookActivations();
  absl::Status Start(StartLoad& load);
  absl::Status CheckRoom(Memory memory, int64_t before) const;
  void AcquireNext(int64_t ride);
  void Compute(int device);
  void LeaveIfOver(int64_t ride);
  absl::Status Check();
  absl::Status CheckWaits();
  absl::Status Wrong(const std::string& what) const;
  bool AnyLeft() const;

  const Scenario scenario_;
  std::mt19937_64 random_;
  bool trace_ = false;
  std::unique_ptr<Policy> policy_;
  Actions actions_;
  int64_t now_ = 0, steps_ = 0, order_ = 0, next_ride_ = 0, moved_bytes_ = 0, quiet_at_ = 0, tick_at_ = -1;
  bool quiet_ = false, cut_off_ = false;
  double worst_wait_ = 0;
  std::priority_queue<Event> events_;
  std::map<int64_t, Ride> rides_;
  std::map<const PolicyRider*, int64_t> ride_of_;
  std::vector<int64_t> computing_;  // The ride, by device; -1: none.
  std::map<LoadId, Loading> loads_;
  std::map<int, CopyKey> copies_;  // By id.
  std::map<int, int64_t> copy_bytes_;
  std::map<int, int> held_;          // By id: what reads it, by our own books.
  std::vector<Books> books_;         // By Index(Memory).
  std::vector<int64_t> over_since_;  // When the force was exceeded.
  std::vector<int64_t> before_;
  const PolicyRider* head_ = nullptr;
  int64_t most_riders_ = 0;
};

// Runs a seed's scenario.
absl::Status RunSeed(uint64_t seed, int64_t most_steps, int64_t* steps, bool* cut_off, double* worst_wait, bool trace);

}  // namespace ditserve::simulation

#endif  // DITSERVE_TESTS_SIMULATION_WORLD_H_
