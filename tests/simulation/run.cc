#include "tests/simulation/run.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/simulation/shrink.h"
#include "tests/simulation/world.h"

namespace ditserve::simulation {

void Tally::Add(const Tally& other) {
  seeds += other.seeds;
  steps += other.steps;
  quiet_steps += other.quiet_steps;
  failures += other.failures;
  cut_off += other.cut_off;
  moved_bytes += other.moved_bytes;
  stalled += other.stalled;
  queued += other.queued;
  if (other.worst_wait > worst_wait) worst_wait = other.worst_wait, worst_seed = other.worst_seed;
}

absl::Status RunScenario(const Scenario& scenario, uint64_t seed, Tally& tally, bool trace) {
  World world(scenario, seed);
  if (trace) world.Trace();
  absl::Status status = world.Run(kMostSteps);
  if (trace) world.Dump();
  if (status.ok() && world.cut_off()) status = absl::InternalError("it does not end");
  tally.Add({1, world.steps(), world.quiet_steps(), !status.ok(), world.cut_off(), world.moved_bytes(), world.stalled(),
             world.queued(), world.worst_wait(), seed});
  return status;
}

absl::Status RunSeeds(Kind kind, uint64_t from, int64_t count, Tally& tally, bool shrinks) {
  for (uint64_t seed = from; seed < from + static_cast<uint64_t>(count); ++seed) {
    const Scenario scenario = MakeScenario(kind, seed);
    const absl::Status status = RunScenario(scenario, seed, tally);
    if (status.ok()) continue;
    const std::string found =
        absl::StrCat(std::string(Name(kind)), " seed ", seed, ": ", std::string(status.message()));
    if (!shrinks) return absl::InternalError(found);
    const Shrunk shrunk = Shrink(scenario, seed, status);
    return absl::InternalError(absl::StrCat(found, "\nshrunk, with seed ", shrunk.seed, ": ",
                                            std::string(shrunk.why.message()), "\n", Describe(shrunk.scenario)));
  }
  return absl::OkStatus();
}

}  // namespace ditserve::simulation
