#ifndef DITSERVE_TESTS_SIMULATION_RUN_H_
#define DITSERVE_TESTS_SIMULATION_RUN_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "tests/simulation/scenario.h"

namespace ditserve::simulation {

// More steps than any seed takes whose riders get on.
constexpr int64_t kMostSteps = 2'000'000;

// What came of seeds.
struct Tally {
  int64_t seeds = 0, steps = 0, quiet_steps = 0, failures = 0, cut_off = 0;
  // What it cost: bytes of the copies that loads made, and ticks that riders waited for modules, and to begin.
  int64_t moved_bytes = 0, stalled = 0, queued = 0;
  double worst_wait = 0;  // As a share of its bound.
  uint64_t worst_seed = 0;

  void Add(const Tally& other);
};

// Runs a scenario; what went wrong.
absl::Status RunScenario(const Scenario& scenario, uint64_t seed, Tally& tally, bool trace = false);

// Runs the seeds from `from` on. The first failure, shrunk to a short scenario; OK if there is none.
absl::Status RunSeeds(Kind kind, uint64_t from, int64_t count, Tally& tally, bool shrinks = true);

}  // namespace ditserve::simulation

#endif  // DITSERVE_TESTS_SIMULATION_RUN_H_
