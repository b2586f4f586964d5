#ifndef DITSERVE_TESTS_SIMULATION_SCENARIO_H_
#define DITSERVE_TESTS_SIMULATION_SCENARIO_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "core/residency/policy/policy.h"

namespace ditserve::simulation {

// What a scenario is made to show.
enum class Kind : uint8_t {
  kCalm,      // Nothing goes wrong: every wait is looked at.
  kFaults,    // Budgets, pressure, cancellations, failures and refusals for some hundred steps; then every wait.
  kRefusals,  // And the system never gives what the budget allows.
  kReal,      // The 1,087 modules of the 20 B model, up to 32 riders of six profiles on two weights, a few faults.
};
constexpr Kind kKinds[] = {Kind::kCalm, Kind::kFaults, Kind::kRefusals, Kind::kReal};
absl::string_view Name(Kind kind);

// A case: devices, weights, riders, and what goes wrong.
struct Scenario {
  struct Client {
    Policy::JoinRequest request;  // `weights` is a place in Scenario::weights.
    int64_t joins_at = 0;         // Ticks.
    int64_t cancels_at = -1;      // -1: never.
    int64_t operation = 1;        // The longest, ticks.
    bool comes_again = false;     // As soon as it is done, as long as others are not.
    int laps = 1;                 // The later ones do without every third module.
    bool decides = false;         // They may pass over some of the others, as they find on the way.
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
  bool late_finish = false;   // Transfers finish after they are enqueued.
  int64_t faults_until = 0;   // Steps; 0: nothing goes wrong.
  int64_t fault_gap = 600;    // Ticks between changes of budgets, pressure and cancellations.
  bool only_budgets = false;  // Nothing else is disturbed.
  bool pressed = false;       // Pressure stays when faults stop, until nobody rides but who comes again.
  int64_t system_bytes = 0;   // The most that the system gives of the first device's memory; 0: as much as the budget.
  int64_t renew_at = 0;       // Ticks between attempts to unload weights that nobody uses; 0: never.
  int64_t check_every = 1;    // Steps between recounts of everything.
};

// The same for the same seed. kReal of every seed is large: a second or more.
Scenario MakeScenario(Kind kind, uint64_t seed);
Scenario MakeRealScenario(uint64_t seed);

// As text that can be pasted into a test: what differs from Scenario's own values.
std::string Describe(const Scenario& scenario);

}  // namespace ditserve::simulation

#endif  // DITSERVE_TESTS_SIMULATION_SCENARIO_H_
