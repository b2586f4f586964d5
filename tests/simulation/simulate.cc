// Runs seeds of the residency policy's simulator. usage: simulate FROM COUNT | simulate trace SEED
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/simulation/world.h"

namespace {
constexpr int64_t kMostSteps = 80000;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const bool trace = std::strcmp(argv[1], "trace") == 0;
  const uint64_t from = std::strtoull(argv[trace ? 2 : 1], nullptr, 10);
  const uint64_t count = trace ? 1 : std::strtoull(argv[2], nullptr, 10);
  int64_t steps = 0, cut = 0, failures = 0;
  double worst = 0;
  for (uint64_t seed = from; seed < from + count; ++seed) {
    int64_t its_steps = 0;
    bool cut_off = false;
    double wait = 0;
    const absl::Status status = ditserve::simulation::RunSeed(seed, kMostSteps, &its_steps, &cut_off, &wait, trace);
    steps += its_steps;
    cut += cut_off;
    if (cut_off) std::printf("seed %lu: cut off\n", seed);
    if (wait > worst) worst = wait;
    if (!status.ok()) {
      std::printf("seed %lu: %s\n", seed, std::string(status.message()).c_str());
      if (++failures >= 10) break;
    }
  }
  std::printf("%lu seeds, %ld steps, %ld failures, %ld cut off, worst wait %.3f of the bound\n", count, steps, failures,
              cut, worst);
  return failures > 0;
}
