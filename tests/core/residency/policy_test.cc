// What the policy decides: each test tells the events, and looks at the actions.
#include "core/residency/policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "tests/core/residency/policy_fixture.h"

namespace ditserve {
namespace {

TEST_F(PolicyTest, NeverIsJudgedByTheConfiguredBudgetNotByPressure) {
  Make({10, 10}, 100);
  policy_->SetPressure(Memory::kDevice, 20, now_, actions_);
  EXPECT_TRUE(policy_->Join(Request(90), now_, actions_).ok());
  EXPECT_EQ(policy_->Join(Request(91), now_, actions_).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(PolicyTest, ABudgetBelowWhatTheAdmittedNeedLeavesThemOneModule) {
  Make({10, 10}, 100);
  Join(Request(50));
  policy_->SetBudget(Memory::kDevice, 1, now_, actions_);
  EXPECT_EQ(policy_->budget(Memory::kDevice).force_bytes(), 60);
}

TEST_F(PolicyTest, NobodyOvertakesTheHeadOfAdmission) {
  Make({10, 10}, 100);
  Join(Request(50));
  PolicyRider& head = Join(Request(80));
  PolicyRider& small = Join(Request(1));
  EXPECT_FALSE(head.admitted);
  EXPECT_FALSE(small.admitted);
}

TEST_F(PolicyTest, AnIdleServerWithoutAQueueAdmits) {
  PolicyOptions options;
  options.max_waiting = 0;
  Make({10, 10}, 100, options);
  EXPECT_TRUE(policy_->Join(Request(50), now_, actions_).ok());
  EXPECT_EQ(policy_->Join(Request(80), now_, actions_).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(PolicyTest, AFullQueueSendsTheLeastUrgentAwayForAMoreUrgentOne) {
  PolicyOptions options;
  options.max_waiting = 1;
  Make({10, 10}, 100, options);
  Join(Request(50));
  Policy::JoinRequest batch = Request(80);
  batch.priority = Priority::kBatch;
  PolicyRider& waiting = Join(batch);
  actions_.clear();
  EXPECT_TRUE(policy_->Join(Request(80), now_, actions_).ok());
  const std::vector<End> ends = Take<End>();
  ASSERT_EQ(ends.size(), 1u);
  EXPECT_EQ(ends[0].rider, &waiting);
}

TEST_F(PolicyTest, OfTheLeastUrgentTheLastIsSentAway) {
  PolicyOptions options;
  options.max_waiting = 2;
  Make({10, 10}, 100, options);
  Join(Request(50));
  Policy::JoinRequest batch = Request(80);
  batch.priority = Priority::kBatch;
  PolicyRider& first = Join(batch);
  PolicyRider& last = Join(batch);
  EXPECT_TRUE(policy_->Join(Request(80), now_, actions_).ok());
  EXPECT_TRUE(first.ended.ok());
  EXPECT_FALSE(last.ended.ok());
}

TEST_F(PolicyTest, WhoIsAboutToBeLetInBeyondAFullQueueIsNotSentAway) {
  PolicyOptions options;
  options.max_waiting = 0;
  Make({40, 40}, 100, options);
  Lap(Join(Request(1)));
  Policy::JoinRequest batch = Request(60);
  batch.priority = Priority::kBatch;
  PolicyRider& head = Join(batch);
  ASSERT_FALSE(head.admitted);  // Memory is on its way back to the system for it.
  EXPECT_EQ(policy_->Join(Request(1), now_, actions_).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(head.ended.ok());
}

TEST_F(PolicyTest, BeyondAFullQueueNobodyIsLetInWhoWouldWaitForMemory) {
  PolicyOptions options;
  options.max_waiting = 0;
  Make({10, 10}, 100, options);
  PolicyRider& rider = Join(Request(1));
  const Pin held = Get(rider);
  const Pin other = Get(Join(RequestOther(10, 1)));
  // Beside the widest module either would fit; but twenty bytes are leased.
  EXPECT_EQ(policy_->Join(Request(79), now_, actions_).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(policy_->Join(Request(78), now_, actions_).ok());
}

TEST_F(PolicyTest, ALoadIsReadOnceForAllWhoWaitForIt) {
  PolicyOptions options;
  options.max_loads = 4;
  Make({10}, 100, options);
  PolicyRider& first = Join(Request(1));
  PolicyRider& second = Join(Request(1, {}, /*compute=*/1));
  Acquire(first);
  Acquire(second);
  EXPECT_EQ(Take<StartLoad>().size(), 1u);  // The second is made from what arrives.
}

TEST_F(PolicyTest, WhatFailedAheadIsNotLoadedAgainAndToldWhereItIsReached) {
  Make({10, 10}, 100);
  PolicyRider& rider = Join(Request(1));
  const std::vector<StartLoad> loads = Take<StartLoad>();
  ASSERT_EQ(loads.size(), 2u);
  policy_->Failed(loads[1].load, absl::UnavailableError("failed"), now_, actions_);
  Arrive(loads[0].load);
  Release(rider, Get(rider));
  EXPECT_TRUE(Take<StartLoad>().empty());
  EXPECT_EQ(policy_->Acquire(rider, 1, now_, actions_).status().message(), "failed");
}

TEST_F(PolicyTest, OfTwoFailuresTheNearerOneIsTold) {
  Make({10, 10, 10}, 100);
  PolicyRider& rider = Join(Request(1));
  const std::vector<StartLoad> loads = Take<StartLoad>();
  ASSERT_EQ(loads.size(), 3u);
  policy_->Failed(loads[2].load, absl::UnavailableError("the farther one"), now_, actions_);
  policy_->Failed(loads[1].load, absl::UnavailableError("the nearer one"), now_, actions_);
  Arrive(loads[0].load);
  Release(rider, Get(rider));
  EXPECT_EQ(policy_->Acquire(rider, 1, now_, actions_).status().message(), "the nearer one");
}

// Operations of both devices read host memory in place, so a copy there that fails is one that either could have read.
TEST_F(PolicyTest, AFailureThatWasPassedIsForgotten) {
  policy_.emplace(PolicyOptions(), std::vector<PolicyDevice>{{true}, {true}}, std::vector<int64_t>{0, 0, 0},
                  std::vector<int64_t>{100, 100, 100}, [](FormId from, FormId to) { return from == to; });
  modules_ = {10, 10, 10, 10};
  weights_ = policy_->AddWeights(modules_);
  PolicyRider& rider = Join(Request(1));
  Pin held = Get(rider);
  Policy::JoinRequest request = Request(1, {{Tier::kHost, 0}});
  request.device = DeviceMemory(1);
  Join(request);
  const std::vector<StartLoad> loads = Take<StartLoad>();
  ASSERT_EQ(loads.at(0).module, 0);
  policy_->Failed(loads[0].load, absl::UnavailableError("failed"), now_, actions_);
  Release(rider, std::move(held));
  Lap(rider);
}

TEST_F(PolicyTest, ARefusedModuleIsAskedForAgainAfterAPauseAndThenToldToItsRiderAlone) {
  Make({10}, 100);
  PolicyRider& rider = Join(Request(1));
  PolicyRider& other = Join(Request(1));
  Acquire(rider);
  Acquire(other);
  for (int i = 0; i < 3; ++i) {
    const std::vector<StartLoad> loads = Take<StartLoad>();
    ASSERT_EQ(loads.size(), 1u) << "refused " << i << " times";
    policy_->Refused(loads[0].load, Memory::kDevice, {0, 10}, absl::ResourceExhaustedError("refused"), now_, actions_);
    if (i == 2) break;
    EXPECT_TRUE(Take<StartLoad>().empty());
    while (now_ < policy_->budget(Memory::kDevice).grows_from) {
      ASSERT_LT(policy_->NextTick(), absl::InfiniteDuration());
      now_ = policy_->NextTick();
      policy_->Tick(now_, actions_);
    }
  }
  const std::vector<End> ends = Take<End>();
  ASSERT_EQ(ends.size(), 1u);
  EXPECT_EQ(ends[0].rider, &rider);
  EXPECT_EQ(ends[0].why.message(), "refused");
  policy_->Leave(rider, now_, actions_);
  now_ = policy_->budget(Memory::kDevice).grows_from;
  policy_->Tick(now_, actions_);
  ArriveAll();
  ASSERT_EQ(Take<Grant>().size(), 1u);  // With what the other left.
  EXPECT_TRUE(other.ended.ok());
}

TEST_F(PolicyTest, WeightsAreBeingLoadedWhileALoadOfTheirOwnIsUnderWay) {
  Make({10}, 100);
  Acquire(Join(RequestOther(10, 1)));
  EXPECT_TRUE(policy_->IsLoading(others_));
  EXPECT_FALSE(policy_->IsLoading(weights_));
  ArriveAll();
  EXPECT_FALSE(policy_->IsLoading(others_));
}

TEST_F(PolicyTest, WhoRidesAfterAnotherBeginsWhenThatOneEnds) {
  Make({10, 10}, 100);
  PolicyRider& first = Join(Request(1));
  Policy::JoinRequest request = Request(1);
  request.join = JoinPolicy::kWait;
  PolicyRider& second = Join(request);
  EXPECT_FALSE(second.riding());
  policy_->Cancel(first, absl::CancelledError("gone"), now_, actions_);
  EXPECT_TRUE(second.riding());
}

TEST_F(PolicyTest, WhoHasNotBegunNeedsWhatWasLoadedForItAndNotWhatAnotherHasUsed) {
  Make({10, 10}, 100);
  PolicyRider& first = Join(Request(1));
  Policy::JoinRequest request = Request(1);
  request.join = JoinPolicy::kWait;
  PolicyRider& second = Join(request);
  Pin held = Get(first);
  const auto drops = [&] {
    return std::count_if(actions_.begin(), actions_.end(),
                         [](const Action& each) { return std::holds_alternative<DropCopy>(each); });
  };
  EXPECT_EQ(drops(), 0);
  Release(first, std::move(held));
  EXPECT_EQ(drops(), 1);
  held = Get(first);
  ArriveAll();
  ASSERT_FALSE(second.riding());
  EXPECT_EQ(drops(), 1);
  EXPECT_NE(CopyOf(weights_, 0), nullptr);  // It was loaded once more.
}

TEST_F(PolicyTest, NobodyRidesAfterALessUrgentRider) {
  Make({10, 10}, 100);
  Policy::JoinRequest batch = Request(1);
  batch.priority = Priority::kBatch;
  Join(batch);
  Policy::JoinRequest request = Request(1);
  request.join = JoinPolicy::kWait;
  EXPECT_TRUE(Join(request).riding());
}

TEST_F(PolicyTest, WhatIsDueStaysDueUntilItIsDone) {
  Make({100}, 100);
  PolicyRider& rider = Join(RequestOther(50, 0));
  Acquire(rider);
  PolicyRider& gone = Join(RequestOther(50, 0));
  policy_->Cancel(gone, absl::CancelledError("gone"), now_, actions_);
  const absl::Duration due = policy_->NextTick();
  now_ = due + kAgeing;  // Told late, after events that decide nothing.
  EXPECT_FALSE(policy_->Join(Request(1), now_, actions_).ok());
  EXPECT_EQ(policy_->NextTick(), due);
  policy_->Cancel(gone, absl::CancelledError("gone"), now_, actions_);
  EXPECT_EQ(policy_->NextTick(), due);
  policy_->Tick(now_, actions_);
  EXPECT_GT(policy_->NextTick(), now_);
}

TEST_F(PolicyTest, WhatIsDueForIdleMemoryStaysDueUntilItIsDone) {
  Make({100}, 100);
  PolicyRider& rider = Join(RequestOther(50, 0));
  Acquire(rider);
  ArriveAll();
  actions_.clear();  // Its lease is not used.
  policy_->Leave(rider, now_, actions_);
  const absl::Duration due = policy_->NextTick();
  ASSERT_LT(due, absl::InfiniteDuration());
  now_ = due;
  EXPECT_FALSE(policy_->Join(Request(1), now_, actions_).ok());
  EXPECT_EQ(policy_->NextTick(), due);
}

TEST_F(PolicyTest, MemoryThatNobodyUsesGoesBackOnceNobodyRodeForLong) {
  Make({10}, 100);
  PolicyRider& rider = Join(Request(1));
  Acquire(rider);
  Arrive(Take<StartLoad>().at(0).load);
  std::vector<Grant> grants = Take<Grant>();
  ASSERT_EQ(grants.size(), 1u);
  policy_->Release(rider, std::move(grants[0].pin), absl::ZeroDuration(), now_, actions_);
  policy_->Leave(rider, now_, actions_);
  actions_.clear();
  now_ += PolicyOptions().idle_release;
  policy_->Tick(now_, actions_);
  const std::vector<TrimCache> trims = Take<TrimCache>();
  ASSERT_EQ(trims.size(), 1u);
  EXPECT_EQ(trims[0].bytes, 10);
}

TEST_F(PolicyTest, CopiesOfRemovedWeightsLeaveTheirMemoryToNobodyForLong) {
  Make({10}, 100);
  Policy::JoinRequest request = Request(1, {{Tier::kDevice, 0}});
  request.routes[0].rest = 0;
  PolicyRider& rider = Join(request);
  Acquire(rider);
  Arrive(Take<StartLoad>().at(0).load);
  std::vector<Grant> grants = Take<Grant>();
  policy_->Release(rider, std::move(grants.at(0).pin), absl::ZeroDuration(), now_, actions_);
  policy_->Leave(rider, now_, actions_);
  now_ += PolicyOptions().idle_release;
  policy_->Tick(now_, actions_);
  EXPECT_EQ(policy_->budget(Memory::kDevice).copy_bytes, 10);  // It rests there.
  policy_->RemoveWeights(weights_, actions_);
  EXPECT_EQ(policy_->budget(Memory::kDevice).cached_bytes, 0);
}

}  // namespace
}  // namespace ditserve
