// Seeds of every kind. A failure prints a scenario to paste into a test of its own, and the seed to run again.
#include <gtest/gtest.h>

#include <string>

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

TEST(SimulationTest, WhereNothingGoesWrongEverybodyGetsOn) { ExpectNoFailure(Kind::kCalm, 1, 2000); }

TEST(SimulationTest, WhereNothingGoesWrongEverybodyElseGetsOn) { ExpectNoFailure(Kind::kCalm, 2001, 2000); }

TEST(SimulationTest, OnceFaultsStopEverybodyGetsOn) { ExpectNoFailure(Kind::kFaults, 1, 2500); }

TEST(SimulationTest, OnceMoreFaultsStopEverybodyGetsOn) { ExpectNoFailure(Kind::kFaults, 2501, 2500); }

TEST(SimulationTest, WhereTheSystemGivesLessThanTheBudgetEverybodyGetsOnOrIsTold) {
  ExpectNoFailure(Kind::kRefusals, 1, 2500);
}

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
