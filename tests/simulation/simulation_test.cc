// Seeds of every kind. A failure prints a scenario to paste into a test of its own, and the seed to run again.
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "tests/simulation/run.h"

namespace ditserve::simulation {
namespace {

void ExpectNoFailure(Kind kind, uint64_t from, int64_t count) {
  Tally tally;
  const absl::Status status = RunSeeds(kind, from, count, tally);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(tally.cut_off, 0);
  // Waiting is looked at in most steps: faults stop early.
  EXPECT_GT(tally.quiet_steps, tally.steps / 2);
}

// A kind, and which slice of its seeds: together a minute of a processor, in parts that run beside each other.
class SimulationSeedsTest : public ::testing::TestWithParam<std::tuple<Kind, int>> {};

TEST_P(SimulationSeedsTest, EverybodyGetsOnOrIsTold) {
  constexpr int64_t kSeeds = 2500;
  const auto [kind, slice] = GetParam();
  ExpectNoFailure(kind, static_cast<uint64_t>(slice * kSeeds + 1), kSeeds);
}

const auto kNames = [](const auto& each) {
  return absl::StrCat(Name(std::get<0>(each.param)), "_", std::get<1>(each.param));
};
INSTANTIATE_TEST_SUITE_P(Of, SimulationSeedsTest,
                         ::testing::Combine(::testing::Values(Kind::kCalm, Kind::kFaults, Kind::kRefusals),
                                            ::testing::Range(0, 4)),
                         kNames);

// A load failed beside a copy that its rider computed with; the rider then took every later module for one that can't
// be loaded, and got on by ageing alone.
TEST(SimulationTest, AFailureThatWasPassedIsForgotten) { ExpectNoFailure(Kind::kRefusals, 10193759, 1); }

// What was to go for the elder's sake was no source, though there was room by then, and the module was read twice at
// once.
TEST(SimulationTest, WhatNeedNotGoAnyMoreIsASource) { ExpectNoFailure(Kind::kRefusals, 20000684, 1); }

// What went for the elder was spared while the elder waited, and others read it meanwhile: it need never have gone.
TEST(SimulationTest, WhatGoesForTheElderIsReadByNobodyElse) {
  Tally tally;
  const absl::Status status = RunSeeds(Kind::kRefusals, 30325109, 1, tally);
  EXPECT_TRUE(status.ok()) << status.message();
}

// An elder on one device spared what went for an elder on another, which then others read.
TEST(SimulationTest, WhatGoesForTheElderIsSparedByNoElderOnAnotherDevice) {
  ExpectNoFailure(Kind::kFaults, 40007671, 1);
}

// More urgent ones came and went while the head waited, each of them the head for a moment: its wait was not of one
// piece.
TEST(SimulationTest, WhoIsOvertakenByMoreUrgentOnesWaitsAnew) { ExpectNoFailure(Kind::kFaults, 70298467, 1); }

TEST(SimulationTest, RealShapesGetOn) { ExpectNoFailure(Kind::kReal, 1, 3); }

}  // namespace
}  // namespace ditserve::simulation
