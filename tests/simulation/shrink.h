#ifndef DITSERVE_TESTS_SIMULATION_SHRINK_H_
#define DITSERVE_TESTS_SIMULATION_SHRINK_H_

#include <cstdint>

#include "absl/status/status.h"
#include "tests/simulation/scenario.h"

namespace ditserve::simulation {

// A scenario that fails, and nothing can be taken out of it without it going well.
struct Shrunk {
  Scenario scenario;
  uint64_t seed = 0;  // Of what happens by chance in it.
  absl::Status why;
};

// Takes out clients, modules, devices and faults, and makes numbers smaller, as long as it fails of the same.
Shrunk Shrink(const Scenario& scenario, uint64_t seed, const absl::Status& why);

}  // namespace ditserve::simulation

#endif  // DITSERVE_TESTS_SIMULATION_SHRINK_H_
