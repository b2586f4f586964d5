#include "core/residency/policy/keep_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace ditserve {
namespace {

using ::testing::Each;

constexpr int kModules = 1000;
constexpr int64_t kBytes = 10;
constexpr FormId kStored = 0, kOperand = 1;
constexpr Stop kHostStop = {Tier::kHost, kStored}, kDeviceStop = {Tier::kDevice, kOperand};
constexpr bool kOnHost = true, kElsewhere = false;  // Where operations read.

// `limited`: which stop vram_limit bounds.
std::vector<Route> Routes(const std::vector<Stop>& stops, FormId compute = kOperand, int limited = -1) {
  Route route;
  route.stops = stops;
  route.stop_bytes.assign(stops.size(), kBytes);
  route.compute = compute;
  route.limited = limited;
  return std::vector<Route>(kModules, route);
}

std::vector<bool> At(const std::vector<uint32_t>& kept, int stop) {
  std::vector<bool> bits;
  for (const uint32_t mask : kept) bits.push_back((mask >> stop & 1) != 0);
  return bits;
}

int64_t Count(const std::vector<bool>& bits) { return std::count(bits.begin(), bits.end(), true); }

TEST(KeepPlanTest, KeepsEverythingThatFits) {
  const std::vector<Route> routes = Routes({kDeviceStop});
  const KeepPlan plan = PlanKept({{0, &routes}}, {kModules * kBytes, 0}, kElsewhere);
  EXPECT_TRUE(plan.complete);
  EXPECT_THAT(plan.kept.at(0), Each(1u));
}

TEST(KeepPlanTest, FillsTheRoomThereIsAndNoMore) {
  const std::vector<Route> routes = Routes({kDeviceStop});
  for (const int64_t copies : {-5, 0, 1, 333, 999}) {
    const KeepPlan plan = PlanKept({{0, &routes}}, {copies * kBytes + kBytes / 2, 0}, kElsewhere);
    EXPECT_FALSE(plan.complete);
    EXPECT_EQ(Count(At(plan.kept.at(0), 0)), std::max<int64_t>(copies, 0));
  }
}

TEST(KeepPlanTest, WhatIsNotTakenIsNotMissing) {
  std::vector<Route> routes = Routes({kDeviceStop});
  for (size_t i = 0; i < routes.size(); i += 4) routes[i] = Route();
  const KeepPlan plan = PlanKept({{0, &routes}}, {kModules * 3 / 4 * kBytes, 0}, kElsewhere);
  EXPECT_TRUE(plan.complete);
  EXPECT_EQ(Count(At(plan.kept.at(0), 0)), kModules * 3 / 4);
}

TEST(KeepPlanTest, WhatMustBeMovedIsSpreadEvenly) {
  const std::vector<Route> routes = Routes({kDeviceStop});
  for (const int percent : {10, 25, 50, 75, 90}) {
    const KeepPlan plan = PlanKept({{0, &routes}}, {kModules * kBytes * percent / 100, 0}, kElsewhere);
    const std::vector<bool> kept = At(plan.kept.at(0), 0);
    constexpr int kStretch = 50;
    for (int begin = 0; begin + kStretch <= kModules; ++begin) {
      const auto count = std::count(kept.begin() + begin, kept.begin() + begin + kStretch, true);
      EXPECT_NEAR(static_cast<double>(count), kStretch * percent / 100.0, 2.5) << percent << " %, from " << begin;
    }
  }
}

TEST(KeepPlanTest, LessRoomForEqualCopiesKeepsAPartOfThem) {
  const std::vector<Route> routes = Routes({kDeviceStop});
  std::vector<bool> before(kModules, true);
  for (int64_t copies = kModules; copies >= 0; copies -= 100) {
    const std::vector<bool> kept = At(PlanKept({{0, &routes}}, {copies * kBytes, 0}, kElsewhere).kept.at(0), 0);
    for (int i = 0; i < kModules; ++i) EXPECT_LE(kept[i], before[i]);
    before = kept;
  }
}

TEST(KeepPlanTest, RidersShareCopiesAndRoom) {
  const std::vector<Route> routes = Routes({kDeviceStop});
  const KeepPlan same = PlanKept({{0, &routes}, {0, &routes}}, {400 * kBytes, 0}, kElsewhere);
  EXPECT_EQ(Count(At(same.kept.at(0), 0)), 400);
  EXPECT_EQ(same.kept.at(0), same.kept.at(1));
  const KeepPlan different = PlanKept({{0, &routes}, {1, &routes}}, {400 * kBytes, 0}, kElsewhere);
  EXPECT_EQ(Count(At(different.kept.at(0), 0)), 200);
  EXPECT_EQ(Count(At(different.kept.at(1), 0)), 200);
}

TEST(KeepPlanTest, WhatOneLetsStayIsThereForTheOther) {
  const std::vector<Route> keeps = Routes({kDeviceStop}), passes = Routes({});
  EXPECT_TRUE(PlanKept({{0, &passes}, {0, &keeps}}, {kModules * kBytes, 0}, kElsewhere).complete);
  EXPECT_FALSE(PlanKept({{1, &passes}, {0, &keeps}}, {kModules * kBytes, 0}, kElsewhere).complete);
}

TEST(KeepPlanTest, ALimitBoundsTheLimitedStopOfItsRiderAlone) {
  const std::vector<Route> limited = Routes({kHostStop, kDeviceStop}, kOperand, /*limited=*/1);
  const std::vector<Route> other = Routes({kDeviceStop}, /*compute=*/2);
  const KeepPlan plan = PlanKept({{0, &limited, 100 * kBytes}, {1, &other}},
                                 {10 * kModules * kBytes, 10 * kModules * kBytes}, kElsewhere);
  EXPECT_EQ(Count(At(plan.kept.at(0), 0)), kModules);
  EXPECT_EQ(Count(At(plan.kept.at(0), 1)), 100);
  EXPECT_EQ(Count(At(plan.kept.at(1), 0)), kModules);
  EXPECT_FALSE(plan.complete);
}

TEST(KeepPlanTest, WhatADeviceCopyStandsBeforeStaysLast) {
  const std::vector<Route> routes = Routes({kHostStop, kDeviceStop});
  const KeepPlan plan = PlanKept({{0, &routes}}, {600 * kBytes, 500 * kBytes}, kElsewhere);
  const std::vector<bool> on_host = At(plan.kept.at(0), 0), on_device = At(plan.kept.at(0), 1);
  EXPECT_EQ(Count(on_device), 600);
  EXPECT_EQ(Count(on_host), 500);
  for (int i = 0; i < kModules; ++i) EXPECT_TRUE(on_host[i] || on_device[i]) << i;
}

TEST(KeepPlanTest, WhereOperationsReadTheHostItsCopiesAreEnough) {
  const std::vector<Route> routes = Routes({{Tier::kHost, kOperand}, kDeviceStop});
  const KeepPlan plan = PlanKept({{0, &routes}}, {kModules * kBytes, 700 * kBytes}, kOnHost);
  EXPECT_EQ(Count(At(plan.kept.at(0), 0)), 700);
  EXPECT_EQ(Count(At(plan.kept.at(0), 1)), 300);
  EXPECT_TRUE(plan.complete);
}

}  // namespace
}  // namespace ditserve
