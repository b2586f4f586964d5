#include "server/engine/router.h"

#include <gtest/gtest.h>

#include <vector>

#include "core/base/error_details.h"

namespace ditserve {
namespace {

RideOutlook Outlook(int requests, double wait, double moving, double compute, double compute_others) {
  RideOutlook outlook;
  outlook.requests = requests;
  outlook.wait = absl::Seconds(wait);
  outlook.moving = absl::Seconds(moving);
  outlook.compute = absl::Seconds(compute);
  outlook.compute_others = absl::Seconds(compute_others);
  return outlook;
}

RideOutlook TooSmall(int64_t needed, int64_t budget) {
  RideOutlook outlook;
  outlook.fits = WithShortage(absl::FailedPreconditionError("too small"), {Memory::kDevice, needed, budget});
  return outlook;
}

TEST(RouterTest, WeightsMoveBesideComputingThatNobodyShares) {
  EXPECT_EQ(PredictedEnd(Outlook(0, 2, 10, 3, 4)), absl::Seconds(12));
  EXPECT_EQ(PredictedEnd(Outlook(0, 2, 5, 3, 4)), absl::Seconds(9));
}

TEST(RouterTest, TheDeviceWhereItEndsFirstIsChosenWhateverElseIsThere) {
  EXPECT_EQ(ChooseDevice(std::vector{Outlook(0, 0, 10, 3, 0), Outlook(2, 0, 1, 3, 2)}), 1u) << "its copies are there";
  EXPECT_EQ(ChooseDevice(std::vector{Outlook(1, 0, 1, 3, 3), Outlook(0, 0, 4, 3, 0)}), 1u) << "nobody computes there";
  EXPECT_EQ(ChooseDevice(std::vector{Outlook(0, 0, 1, 9, 0), Outlook(1, 0, 1, 3, 3)}), 1u) << "it is faster";
  EXPECT_EQ(ChooseDevice(std::vector{Outlook(1, 6, 1, 3, 0), Outlook(2, 0, 1, 3, 3)}), 1u) << "it need not wait";
}

// Where moving takes the time, riders of one model cost each other nothing: then other devices are no better, and no
// worse.
TEST(RouterTest, OfThoseWhereItEndsAsSoonTheOneWithFewestRequestsIsChosenThenTheFirst) {
  EXPECT_EQ(ChooseDevice(std::vector{Outlook(1, 0, 10, 1, 1), Outlook(0, 0, 10, 1, 0)}), 1u);
  EXPECT_EQ(ChooseDevice(std::vector{Outlook(1, 0, 10, 1, 1), Outlook(0, 0, 12.4, 1, 0)}), 1u) << "nearly";
  EXPECT_EQ(ChooseDevice(std::vector{Outlook(1, 0, 10, 1, 1), Outlook(0, 0, 12.6, 1, 0)}), 0u) << "no more";
  EXPECT_EQ(ChooseDevice(std::vector{Outlook(1, 0, 10, 1, 1), Outlook(1, 0, 10, 1, 1)}), 0u);
  EXPECT_EQ(ChooseDevice(std::vector{Outlook(2, 0, 0, 0, 0), Outlook(1, 0, 0, 0, 0)}), 1u) << "nothing was measured";
}

TEST(RouterTest, WhatFitsOnOneDeviceAloneGoesThere) {
  EXPECT_EQ(ChooseDevice(std::vector{TooSmall(5, 4), Outlook(9, 100, 10, 3, 40)}), 1u);
  EXPECT_EQ(ChooseDevice(std::vector{Outlook(9, 100, 10, 3, 40), TooSmall(5, 4)}), 0u);
  RideOutlook never = Outlook(0, 0, 0, 0, 0);
  never.wait = absl::InfiniteDuration();
  EXPECT_EQ(ChooseDevice(std::vector{TooSmall(5, 4), never}), 1u) << "whenever that is";
}

TEST(RouterTest, WhatFitsNowhereIsRefusedWhereTheLeastIsMissing) {
  EXPECT_EQ(ChooseDevice(std::vector{TooSmall(9, 4), TooSmall(9, 8), TooSmall(9, 7)}), 1u);
}

}  // namespace
}  // namespace ditserve
