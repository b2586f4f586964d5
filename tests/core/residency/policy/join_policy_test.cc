#include "core/residency/policy/join_policy.h"

#include <gtest/gtest.h>

namespace ditserve {
namespace {

constexpr absl::Duration kSweep = absl::Seconds(40);

// A sweep that is bound by transfers, of which `passed` is over.
JoinSituation Streaming(double passed) { return {kSweep * passed, kSweep * (1 - passed), {}, {}}; }

bool Waits(const JoinSituation& situation) {
  const JoinCosts costs = PredictJoinCosts(situation);
  return costs.wait < costs.immediate;
}

TEST(JoinPolicyTest, JoinsASweepThatHasJustBegun) { EXPECT_FALSE(Waits(Streaming(0.1))); }

TEST(JoinPolicyTest, WaitsForASweepThatIsNearlyOver) { EXPECT_TRUE(Waits(Streaming(0.9))); }

TEST(JoinPolicyTest, DoesNotWaitForOthersWhoseComputingTakesMuchLonger) {
  EXPECT_FALSE(Waits({kSweep * 0.9, kSweep * 0.1, absl::Minutes(5), absl::Seconds(10)}));
}

TEST(JoinPolicyTest, CountsWhatBothThenTake) {
  // Together: everything is moved once, 40 s for each of the two.
  EXPECT_EQ(PredictJoinCosts(Streaming(0.5)).immediate, 2 * kSweep);
  // One after the other: 20 s for those under way, then 40 s more.
  EXPECT_EQ(PredictJoinCosts(Streaming(0.5)).wait, 2 * kSweep);
}

}  // namespace
}  // namespace ditserve
