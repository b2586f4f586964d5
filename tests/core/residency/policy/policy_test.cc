// What the policy decides: each test tells the events, and looks at the actions.
#include "core/residency/policy/policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "tests/core/residency/policy/policy_fixture.h"

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

TEST_F(PolicyTest, WhatAPassDoesWithoutIsNotLoadedForIt) {
  Make({10, 10, 30, 10}, 100);
  Policy::JoinRequest request = Request(70);
  request.routes[0] = request.routes[2] = Route();
  PolicyRider& rider =
      Join(std::move(request));  // The widest of its modules fits beside it, the widest of all does not.
  EXPECT_EQ(rider.next, 1);
  Release(rider, Get(rider));
  EXPECT_EQ(rider.next, 3);
  Release(rider, Get(rider));
  EXPECT_TRUE(rider.passed_all());
  for (const ModuleIndex module : {0, 2}) EXPECT_EQ(CopyOf(weights_, module), nullptr) << module;
  policy_->Leave(rider, now_, actions_);
}

TEST_F(PolicyTest, RidersOfDifferentModulesShareThoseThatBothTake) {
  Make({10, 10, 10}, 1000);
  Policy::JoinRequest fewer = Request(10);
  fewer.routes[1] = Route();
  PolicyRider& all = Join(Request(10));
  PolicyRider& some = Join(std::move(fewer));
  std::vector<ModuleIndex> loaded;
  while (!all.passed_all()) {
    for (PolicyRider* const rider : {&all, &some}) {
      if (rider->passed_all()) continue;
      std::optional<Pin> pin = Acquire(*rider);
      for (StartLoad& load : Take<StartLoad>()) {
        loaded.push_back(load.module);
        Arrive(load.load);
      }
      if (!pin) pin = Granted(*rider);
      Release(*rider, *std::move(pin));
    }
  }
  EXPECT_EQ(loaded, (std::vector<ModuleIndex>{0, 1, 2}));
  for (PolicyRider* const rider : {&all, &some}) policy_->Leave(*rider, now_, actions_);
}

TEST_F(PolicyTest, DistancesCountTheModulesThatARiderTakes) {
  Make({10, 10, 10, 10, 10}, 1000);
  Policy::JoinRequest request = Request(10);
  request.routes[1] = request.routes[2] = Route();
  PolicyRider& rider = Join(std::move(request));
  EXPECT_EQ(Sweeps::Distance(rider, 3), 1);
  EXPECT_EQ(Sweeps::Distance(rider, 4), 2);
  policy_->Release(rider, Get(rider), absl::Seconds(1), now_, actions_);
  EXPECT_EQ(Sweeps::Distance(rider, 3), 0);
  EXPECT_EQ(Sweeps::Distance(rider, 0), 2) << "in its next pass";
  EXPECT_EQ(rider.attained_seconds(), 1);
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

TEST_F(PolicyTest, PredictsAWaitOfARideForEachBeforeItOverThoseWhoRide) {
  PolicyOptions options;
  options.max_riders = 2;
  Make({10, 10}, 100, options);
  PolicyRider& first = Join(Request(1));
  EXPECT_EQ(policy_->PredictedWait(Memory::kDevice), absl::ZeroDuration()) << "a place is free";
  Join(Request(1));
  EXPECT_EQ(policy_->PredictedWait(Memory::kDevice), absl::Milliseconds(500))
      << "a second a ride, while none has ended";
  now_ += absl::Seconds(8);
  Lap(first);
  Join(Request(1));
  EXPECT_EQ(policy_->PredictedWait(Memory::kDevice), absl::Seconds(4)) << "two ride, and nobody waits";
  Join(Request(1));
  EXPECT_EQ(policy_->PredictedWait(Memory::kDevice), absl::Seconds(8)) << "one waits";
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

TEST_F(PolicyTest, WhoHasWaitedLongIsNotSentAway) {
  PolicyOptions options;
  options.max_waiting = 1;
  Make({10, 10}, 100, options);
  Join(Request(50));
  Policy::JoinRequest batch = Request(80);
  batch.priority = Priority::kBatch;
  PolicyRider& waiting = Join(batch);
  Wait((Admission::kPatience + 1) * kAgeing);
  EXPECT_EQ(policy_->Join(Request(80), now_, actions_).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(waiting.ended.ok());
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
  in_host_memory_ = true;
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

// Whose memory another device's load would write.
TEST_F(PolicyTest, WhatALoadStillReadsOnTheHostStays) {
  Make({10}, 100);
  policy_->SetBudget(Memory::kHost, 10, now_, actions_);
  Join(Request(1, {{Tier::kHost, 0}}, /*compute=*/1));
  const std::vector<StartLoad> loads = Take<StartLoad>();
  ASSERT_EQ(loads.size(), 1u);
  ASSERT_EQ(loads[0].targets.size(), 2u);
  policy_->Enqueued(loads[0].load, now_, actions_);
  policy_->SetBudget(Memory::kHost, 0, now_, actions_);
  EXPECT_TRUE(Take<DropCopy>().empty());
  policy_->Finished(loads[0].load, now_, actions_);
  EXPECT_EQ(Take<DropCopy>().size(), 1u);
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

TEST_F(PolicyTest, WhatFailedIsForgottenOnceItIsThere) {
  Make({10, 10}, 100);
  PolicyRider& rider = Join(Request(1));
  const std::vector<StartLoad> loads = Take<StartLoad>();
  ASSERT_EQ(loads.size(), 2u);
  policy_->Failed(loads[1].load, absl::UnavailableError("failed"), now_, actions_);
  Arrive(loads[0].load);
  Join(Request(1));  // It asks for it anew.
  ArriveAll();
  ASSERT_NE(CopyOf(weights_, 1), nullptr);
  Release(rider, Get(rider));
  EXPECT_TRUE(policy_->Acquire(rider, 1, now_, actions_)->has_value());
}

TEST_F(PolicyTest, BehindAFailureThatIsForgottenLoadingGoesOnAtOnce) {
  Make({10, 10, 10}, 100);
  PolicyRider& rider = Join(Request(1));
  std::vector<StartLoad> loads = Take<StartLoad>();
  ASSERT_EQ(loads.size(), 3u);
  policy_->Failed(loads[1].load, absl::UnavailableError("failed"), now_, actions_);
  policy_->Failed(loads[2].load, absl::UnavailableError("failed"), now_, actions_);
  Arrive(loads[0].load);
  PolicyRider& other = Join(Request(1));  // It asks for both anew, gets the first, and goes.
  loads = Take<StartLoad>();
  ASSERT_EQ(loads.size(), 2u);
  Arrive(loads[0].load);
  policy_->Failed(loads[1].load, absl::UnavailableError("failed"), now_, actions_);
  policy_->Leave(other, now_, actions_);
  Release(rider, Get(rider));
  EXPECT_TRUE(Take<StartLoad>().empty());
  const absl::StatusOr<std::optional<Pin>> pin = policy_->Acquire(rider, 1, now_, actions_);
  ASSERT_TRUE(pin->has_value());
  EXPECT_EQ(Take<StartLoad>().at(0).module, 2);
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

// --- laps

TEST_F(PolicyTest, ANextLapWaitsForNobodyAndHasWhatTheLapBeforeItHad) {
  PolicyOptions options;
  options.max_riders = 1;
  Make({10, 20}, 70, options);
  PolicyRider& first = Join(Request(30));
  PolicyRider& waiting = Join(Request(30));
  EXPECT_FALSE(waiting.admitted);
  PolicyRider& next = **policy_->JoinLap(first, Request(0).routes, std::nullopt, now_, actions_);
  EXPECT_EQ(next.stage, PolicyRider::Stage::kAdmitted);
  EXPECT_EQ(policy_->budget(Memory::kDevice).activation_bytes, 30);
  while (!first.passed_all()) Release(first, Get(first));
  EXPECT_TRUE(next.riding());
  policy_->Leave(first, now_, actions_, 0, &next);
  EXPECT_EQ(policy_->budget(Memory::kDevice).activation_bytes, 30) << "they are its own now";
  EXPECT_FALSE(waiting.admitted);
  CheckInvariants();
  Lap(next);
  EXPECT_TRUE(waiting.admitted);
  EXPECT_EQ(policy_->budget(Memory::kDevice).activation_bytes, 30);
}

TEST_F(PolicyTest, ALoopTakesOnePlaceAndRidesAsLongAsAllItsLaps) {
  PolicyOptions options;
  options.max_riders = 2;
  Make({10, 20}, 70, options);
  PolicyRider& first = Join(Request(1));
  PolicyRider& next = **policy_->JoinLap(first, Request(0).routes, std::nullopt, now_, actions_);
  now_ += absl::Seconds(3);
  while (!first.passed_all()) Release(first, Get(first));
  EXPECT_FALSE(policy_->estimates(Memory::kDevice).usual_ride.has_value()) << "it goes on";
  ASSERT_TRUE(next.riding());
  EXPECT_FALSE(next.takes_place()) << "the lap before it does";
  EXPECT_TRUE(Join(Request(1)).admitted);
  policy_->Leave(first, now_, actions_, 0, &next);
  EXPECT_TRUE(next.takes_place());
  now_ += absl::Seconds(4);
  while (!next.passed_all()) Release(next, Get(next));
  EXPECT_EQ(policy_->estimates(Memory::kDevice).usual_ride, absl::Seconds(7));
}

// Else somebody would be let in between who leaves no room for it.
TEST_F(PolicyTest, RoomForTheWidestModuleOfALoopStaysWhileALapDoesWithout) {
  Make({10, 40}, 100);
  PolicyRider& first = Join(Request(30));
  std::vector<Route> narrow = Request(0).routes;
  narrow[1] = Route();
  PolicyRider& next = **policy_->JoinLap(first, narrow, std::nullopt, now_, actions_);
  while (!first.passed_all()) Release(first, Get(first));
  policy_->Leave(first, now_, actions_, 0, &next);
  EXPECT_EQ(policy_->budget(Memory::kDevice).widest_bytes, 40);
  CheckInvariants();
  Lap(next);
  EXPECT_EQ(policy_->budget(Memory::kDevice).widest_bytes, 0);
}

TEST_F(PolicyTest, TheFirstModulesOfTheNextLapAreLoadedWhileTheLastOnesOfThisAreComputed) {
  Make({10, 10, 10, 10}, 1000);
  PolicyRider& first = Join(Request(1));
  PolicyRider& next = **policy_->JoinLap(first, Request(0).routes, std::nullopt, now_, actions_);
  while (first.next < 3) Release(first, Get(first));
  Pin last = Get(first);
  ArriveAll();
  EXPECT_NE(CopyOf(weights_, 0), nullptr);
  Release(first, std::move(last));
  EXPECT_NE(Acquire(next), std::nullopt) << "at once";
}

TEST_F(PolicyTest, TheFirstModulesOfTheNextLapDoNotStandInTheWindowOfTheLastOnesOfThis) {
  Make({1, 1, 1, 40, 40, 40, 40, 40}, 1000);
  PolicyRider& first = Join(Request(1));
  ASSERT_TRUE(policy_->JoinLap(first, Request(0).routes, std::nullopt, now_, actions_).ok());
  while (first.next < 3) Release(first, Get(first));
  ArriveAll();
  for (const ModuleIndex module : {3, 4, 5}) EXPECT_NE(CopyOf(weights_, module), nullptr) << module;
  EXPECT_EQ(CopyOf(weights_, 0), nullptr);
}

TEST_F(PolicyTest, WhereALapEndsEarlyTheNextBeginsAndMayBeTold) {
  Make({10}, 100);
  PolicyRider& first = Join(Request(1));
  PolicyRider& next = **policy_->JoinLap(first, Request(0).routes, std::nullopt, now_, actions_);
  policy_->Cancel(first, absl::CancelledError("told so"), now_, actions_);
  EXPECT_TRUE(next.riding());
  EXPECT_FALSE(policy_->JoinLap(first, Request(0).routes, std::nullopt, now_, actions_).ok());
  policy_->Cancel(next, absl::CancelledError("told so"), now_, actions_);
  policy_->Leave(first, now_, actions_, 0, &next);
  policy_->Leave(next, now_, actions_);
  EXPECT_EQ(policy_->budget(Memory::kDevice).activation_bytes, 0);
}

// --- activations that the system refuses

class RefusedActivationsTest : public PolicyTest {
 protected:
  void Refuse(PolicyRider& rider) {
    policy_->Refused(rider, rider.activation_bytes, absl::ResourceExhaustedError("refused"), now_, actions_);
  }
  void WaitUntilItGrows() { Wait(policy_->budget(Memory::kDevice).grows_from - now_); }
};

TEST_F(RefusedActivationsTest, TheyTakeWhatCopiesThatNobodyUsesHad) {
  Make({50}, 100);
  Lap(Join(Request(1, {{Tier::kDevice, 0}})));
  actions_.clear();
  PolicyRider& rider = Join(Request(40));
  ASSERT_EQ(Take<Admit>().at(0).grown_bytes, 40);
  Refuse(rider);
  const std::vector<Admit> admitted = Take<Admit>();
  ASSERT_EQ(admitted.size(), 1u);
  EXPECT_EQ(admitted[0].grown_bytes, 0);
  EXPECT_EQ(CopyOf(weights_, 0), nullptr);
}

TEST_F(RefusedActivationsTest, WhereNothingIsLeftThatCouldGoTheRiderEndsTheThirdTime) {
  Make({10}, 100);
  PolicyRider& rider = Join(Request(40));
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(Take<Admit>().size(), 1u) << "refused " << i << " times";
    Refuse(rider);
    EXPECT_TRUE(Take<Admit>().empty());
    WaitUntilItGrows();
  }
  EXPECT_EQ(rider.ended.message(), "refused");
}

TEST_F(RefusedActivationsTest, TheyWaitForWhatOthersComputeIn) {
  Make({10}, 100);
  PolicyRider& other = Join(Request(40));
  PolicyRider& rider = Join(Request(30));
  for (int i = 0; i < 9; ++i) {
    Take<Admit>();
    Refuse(rider);
    WaitUntilItGrows();
  }
  EXPECT_TRUE(rider.ended.ok());
  Refuse(rider);
  actions_.clear();
  policy_->Leave(other, now_, actions_);
  const std::vector<Admit> admitted = Take<Admit>();
  ASSERT_EQ(admitted.size(), 1u);
  EXPECT_EQ(admitted[0].grown_bytes, 0);
}

TEST_F(RefusedActivationsTest, OnceABudgetHasFallenTheyMayNeverFit) {
  Make({10}, 100);
  PolicyRider& rider = Join(Request(40));
  policy_->SetBudget(Memory::kDevice, 45, now_, actions_);
  EXPECT_TRUE(rider.ended.ok());
  Refuse(rider);
  EXPECT_TRUE(absl::IsFailedPrecondition(rider.ended)) << rider.ended;
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
  EXPECT_EQ(trims[0].bytes, 10 + 1);  // Of the copy, and of activations.
}

TEST_F(PolicyTest, EachDeviceHasAPaceOfItsOwn) {
  PolicyOptions options;
  options.max_loads = 1;
  Make({10, 20}, 100, options, /*devices=*/2);
  std::vector<PolicyRider*> riders;
  for (const Memory memory : {DeviceMemory(0), DeviceMemory(1)}) {
    Policy::JoinRequest request = Request(5);
    request.device = memory;
    riders.push_back(&Join(request));
  }
  const auto pace = [this](int device) { return policy_->estimates(DeviceMemory(device)).bytes_per_second(); };
  EXPECT_EQ(pace(0), Estimates::kAssumedBytesPerSecond);
  std::vector<StartLoad> loads = Take<StartLoad>();
  ASSERT_EQ(loads.size(), 2);
  now_ += absl::Seconds(2);
  Arrive(loads[0].load);
  EXPECT_EQ(pace(0), 5) << "10 bytes in 2 s, though the next are on their way";
  now_ += absl::Seconds(3);
  Arrive(loads[1].load);
  EXPECT_EQ(pace(1), 2) << "10 bytes in 5 s";
  loads = Take<StartLoad>();
  ASSERT_EQ(loads.size(), 2);
  Arrive(loads[0].load);
  EXPECT_EQ(pace(0), 6) << "30 bytes in 5 s, without a gap";
  now_ += absl::Seconds(1);
  Arrive(loads[1].load);
  EXPECT_EQ(pace(1), 5) << "30 bytes in 6 s";
  for (PolicyRider* rider : riders) {
    std::optional<Pin> pin = Acquire(*rider);
    ASSERT_TRUE(pin.has_value());
    policy_->Release(*rider, *std::move(pin), absl::Seconds(rider == riders[0] ? 1 : 4), now_, actions_);
    Lap(*rider);
  }
  const auto computing = [this](int device) {
    return policy_->estimates(DeviceMemory(device)).computing_per_byte.at(weights_);
  };
  EXPECT_DOUBLE_EQ(computing(0), 1.0 / 5);
  EXPECT_DOUBLE_EQ(computing(1), 4.0 / 5);
}

TEST_F(PolicyTest, OnlyThoseOnItsDeviceCountForWhoJoins) {
  Make({10, 20}, 100, {}, /*devices=*/2);
  const auto request = [this](int device, JoinPolicy join) {
    Policy::JoinRequest request = Request(5);
    request.device = DeviceMemory(device);
    request.join = join;
    return request;
  };
  const auto compute = [this](PolicyRider& rider, absl::Duration took) {
    Pin pin = Get(rider);
    policy_->Release(rider, std::move(pin), took, now_, actions_);
  };
  PolicyRider& before = Join(request(0, JoinPolicy::kImmediate));
  compute(before, absl::Seconds(2));
  Lap(before);
  PolicyRider& beside = Join(request(1, JoinPolicy::kImmediate));
  compute(beside, absl::Seconds(1));
  PolicyRider& first = Join(request(0, JoinPolicy::kImmediate));
  compute(first, absl::Seconds(3));
  EXPECT_EQ(Join(request(0, JoinPolicy::kImmediate)).attained_seconds(), 3) << "as the one that computes beside it";
  const PolicyRider& last = Join(request(0, JoinPolicy::kAuto));
  ASSERT_TRUE(last.join_costs.has_value());
  // The first has half of its 2 s to compute, the others all; to move 30 bytes takes no time.
  EXPECT_NEAR(absl::ToDoubleSeconds(last.join_costs->immediate), (3 + 2) + (2 + 2), 1e-3);
}

TEST_F(PolicyTest, WhoIsAheadOfThoseAlikeGoesAfterThemHoweverQuickItIs) {
  Make({10, 10, 10}, 100);
  const auto compute = [this](PolicyRider& rider, absl::Duration took) {
    policy_->Release(rider, Get(rider), took, now_, actions_);
  };
  PolicyRider& one = Join(Request(5));
  PolicyRider& other = Join(Request(5));
  PolicyRider& larger = Join(Request(6));
  compute(other, absl::Seconds(5));
  compute(one, absl::Seconds(1));
  EXPECT_EQ(one.attained_seconds(), other.attained_seconds());
  compute(one, absl::Seconds(0.1));
  EXPECT_GT(one.attained_seconds(), other.attained_seconds()) << "though it computed for less";
  compute(other, absl::Seconds(5));
  EXPECT_EQ(one.attained_seconds(), other.attained_seconds());
  // Others have their own time.
  compute(larger, absl::Seconds(2));
  EXPECT_EQ(larger.attained_seconds(), 2);
  EXPECT_DOUBLE_EQ(one.attained_seconds(), (5 + 1 + 0.1 + 5) / 2);
}

TEST_F(PolicyTest, ProfilesThatTakeTurnsKeepTheirPace) {
  Make({10, 20}, 100);
  const auto request = [this](int64_t limit_bytes) {
    Policy::JoinRequest request = Request(0);
    request.limit_bytes = limit_bytes;
    return request;
  };
  const auto pace = [this](const PolicyRider& rider) { return policy_->sweeps().pace_seconds(*rider.itinerary); };
  const auto lap = [&](int64_t limit_bytes, absl::Duration time) {
    PolicyRider& rider = Join(request(limit_bytes));
    Pin pin = Get(rider);
    now_ += time;
    Release(rider, std::move(pin));
    Lap(rider);
  };
  const auto pace_of = [&](int64_t limit_bytes) {
    PolicyRider& rider = Join(request(limit_bytes));
    const double seconds = pace(rider);
    policy_->Leave(rider, now_, actions_);
    return seconds;
  };
  lap(100, absl::Seconds(2));
  for (int64_t other = 1; other < 8; ++other) lap(100 + other, absl::Seconds(6));
  EXPECT_EQ(pace_of(100), 1);
  // But the limits of clients don't stay for ever: of eight that nobody rides, that goes which was not asked for
  // longest.
  lap(200, absl::Seconds(6));
  EXPECT_EQ(pace_of(100), 1);
  for (int64_t other = 1; other < 24; ++other) lap(200 + other, absl::Seconds(6));
  EXPECT_LT(pace_of(100), 1);
  EXPECT_LE(policy_->sweeps().itineraries().size(), 9);
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
  policy_->RemoveWeights(weights_, now_, actions_);
  EXPECT_EQ(policy_->budget(Memory::kDevice).cached_bytes, 0);
}

}  // namespace
}  // namespace ditserve
