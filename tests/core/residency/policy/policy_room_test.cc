// Room for copies: what stays, what is loaded ahead, and what gives way.
#include <gtest/gtest.h>

#include <optional>
#include <utility>
#include <vector>

#include "core/residency/policy/policy.h"
#include "tests/core/residency/policy/policy_fixture.h"

namespace ditserve {
namespace {

class PolicyRoomTest : public PolicyTest {
 protected:
  static constexpr int64_t kPlenty = 1000;

  // All its modules may stay on the device, where vram_limit bounds them.
  Policy::JoinRequest Keeping(int64_t activations, std::optional<int64_t> limit = std::nullopt) const {
    Policy::JoinRequest request = Request(activations, {{Tier::kDevice, 0}});
    for (Route& route : request.routes) route.limited = 0;
    request.limit_bytes = limit;
    return request;
  }

  // Only its first module may stay.
  Policy::JoinRequest KeepingTheFirst(int64_t activations) const {
    Policy::JoinRequest request = Keeping(activations);
    for (size_t i = 1; i < request.routes.size(); ++i) {
      request.routes[i] = {{}, {}, request.routes[i].compute_bytes, -1, -1, 0};
    }
    return request;
  }

  // Of so many modules of ten bytes, what stays after a lap in so much room.
  int64_t StaysOf(size_t modules, int64_t room) {
    Make(std::vector<int64_t>(modules, 10), 1 + room);
    Lap(Join(Keeping(1)));
    return policy_->budget(Memory::kDevice).copy_bytes;
  }

  int64_t UsedBytes() const {
    const MemoryBudget& budget = policy_->budget(Memory::kDevice);
    return budget.used_bytes() - budget.leaving_bytes;
  }
};

// --- what stays

TEST_F(PolicyRoomTest, WhereAllFitsAllStays) { EXPECT_EQ(StaysOf(20, 200), 200); }

TEST_F(PolicyRoomTest, WhereNotAllFitsAQuarterOfTheRoomIsLeftToStreamIn) { EXPECT_EQ(StaysOf(20, 80), 60); }

TEST_F(PolicyRoomTest, TheWidestModuleAtLeastIsLeftToStreamIn) {
  EXPECT_EQ(StaysOf(20, 39), 20);
  EXPECT_EQ(policy_->evictions(Memory::kDevice), 0);  // Nothing that was to stay made room for another.
}

TEST_F(PolicyRoomTest, ThreeModulesAtMostAreLeftToStreamIn) { EXPECT_EQ(StaysOf(30, 200), 170); }

TEST_F(PolicyRoomTest, ALimitLeavesTwoModulesToStreamInBesideActivations) {
  Make(std::vector<int64_t>(8, 10), kPlenty);
  Lap(Join(Keeping(/*activations=*/10, /*limit=*/10 + 20 + 30)));
  EXPECT_EQ(policy_->budget(Memory::kDevice).copy_bytes, 30);
}

TEST_F(PolicyRoomTest, OverItsLimitNothingStaysOnceItWasUsed) {
  for (const int64_t limit : {41, 42}) {
    Make({10}, kPlenty);
    others_ = -1;
    PolicyRider& other = Join(RequestOther(30, 1));
    const Pin held = Get(other);
    PolicyRider& rider = Join(Keeping(1, limit));  // With its module, 42 bytes are used.
    Release(rider, Get(rider));
    EXPECT_EQ(CopyOf(weights_, 0) != nullptr, limit == 42);
  }
}

TEST_F(PolicyRoomTest, OverItsLimitNothingStaysOnceItsRiderLeft) {
  for (const int64_t limit : {40, 41}) {
    Make({10}, kPlenty);
    others_ = -1;
    PolicyRider& other = Join(RequestOther(30, 1));
    const Pin held = Get(other);
    PolicyRider& rider = Join(Keeping(1, limit));
    ArriveAll();
    policy_->Leave(rider, now_, actions_);  // With its module, 41 bytes are used from here on.
    EXPECT_EQ(CopyOf(weights_, 0) != nullptr, limit == 41);
  }
}

TEST_F(PolicyRoomTest, WhatStreamsGoesWithItsRider) {
  Make(std::vector<int64_t>(20, 10), 1 + 40);
  PolicyRider& rider = Join(Keeping(1));
  ArriveAll();
  ASSERT_GT(policy_->budget(Memory::kDevice).streaming_bytes, 0);
  policy_->Leave(rider, now_, actions_);
  EXPECT_EQ(policy_->budget(Memory::kDevice).streaming_bytes, 0);
}

// --- what is loaded ahead

// What somebody keeps was loaded for one who does not.
TEST_F(PolicyRoomTest, WhatStaysTakesNothingOfTheWindow) {
  PolicyOptions options;
  options.max_loads = 8;
  Make(std::vector<int64_t>(20, 10), 2 + 80, options);
  PolicyRider& passes = Join(Request(1));
  ArriveAll();
  PolicyRider& keeps = Join(Keeping(1));
  ArriveAll();
  for (int module = 0; module < 3; ++module) {
    Release(passes, Get(passes));
    Release(keeps, Get(keeps));
  }
  const Pin held = Get(passes);
  EXPECT_NE(CopyOf(weights_, 4), nullptr) << "it is loaded ahead";
  CheckInvariants();
}

TEST_F(PolicyRoomTest, ThreeModulesAreLoadedAhead) {
  PolicyOptions options;
  options.max_loads = 8;
  Make({10, 10, 10, 10}, kPlenty, options);
  Join(Request(1));
  EXPECT_EQ(Take<StartLoad>().size(), 3u);
}

TEST_F(PolicyRoomTest, UnderALimitTwoModulesAreLoadedAhead) {
  PolicyOptions options;
  options.max_loads = 8;
  Make({10, 10, 10, 10}, kPlenty, options);
  Policy::JoinRequest request = Request(1);
  request.limit_bytes = 0;
  Join(request);
  EXPECT_EQ(Take<StartLoad>().size(), 2u);
}

TEST_F(PolicyRoomTest, ALimitThatLeavesRoomIsLoadedAheadInto) {
  PolicyOptions options;
  options.max_loads = 8;
  Make({10, 10, 10, 10}, kPlenty, options);
  Join(Keeping(1, /*limit=*/kPlenty));
  EXPECT_EQ(Take<StartLoad>().size(), 4u);
}

TEST_F(PolicyRoomTest, OfALimitAllThatNothingTakesIsLoadedAheadInto) {
  PolicyOptions options;
  options.max_loads = 20;
  Make({10, 10, 10, 10, 10, 10, 10, 10}, kPlenty, options);
  Join(Keeping(1, /*limit=*/1 + 5 * 10));
  EXPECT_EQ(Take<StartLoad>().size(), 5u);
}

TEST_F(PolicyRoomTest, NoLimitStopsTheModuleThatARiderStandsAt) {
  Make({10, 30, 20}, kPlenty);
  PolicyRider& other = Join(RequestOther(10, 1));
  const Pin held = Get(other);  // More than the limit already.
  Policy::JoinRequest request = Request(1);
  request.limit_bytes = 0;
  PolicyRider& rider = Join(request);
  Lap(rider);
  EXPECT_EQ(policy_->sweeps().riders().size(), 1u);  // It came through, and left.
}

TEST_F(PolicyRoomTest, ACopyOnTheWayIsMadeWithinTheLimitOnly) {
  for (const int64_t others : {10, 11}) {
    Make({10}, kPlenty);
    others_ = -1;
    Join(RequestOther(others, 1));
    // Beside its operand, the other's module and all activations there are ten bytes, or nine.
    Policy::JoinRequest request = Request(1, {{Tier::kDevice, 0}}, /*compute=*/1);
    request.routes[0].limited = 0;
    request.limit_bytes = 2 + 10 + 10 + 10;
    actions_.clear();
    Join(request);
    const std::vector<StartLoad> loads = Take<StartLoad>();
    ASSERT_EQ(loads.size(), 1u);
    EXPECT_EQ(loads[0].targets.size(), others == 10 ? 2u : 1u);
  }
}

// --- what gives way

TEST_F(PolicyRoomTest, TheCopyWhoseNextUseIsFarthestGivesWay) {
  Make({10, 10, 10}, 2 + 30);
  PolicyRider& rider = Join(Request(1));
  const Pin held = Get(rider);
  ASSERT_NE(CopyOf(weights_, 2), nullptr);
  Acquire(Join(RequestOther(10, 1)));
  EXPECT_NE(CopyOf(weights_, 1), nullptr);
  EXPECT_EQ(CopyOf(weights_, 2), nullptr);
}

TEST_F(PolicyRoomTest, NextUsesAreComparedInPredictedTimeNotInModules) {
  Make({10, 10}, 2 + 50);
  PolicyRider& taught = Join(Request(1));
  while (!taught.passed_all()) {
    Pin pin = Get(taught);
    now_ += absl::Seconds(1);
    Release(taught, std::move(pin));
  }
  PolicyRider& slow = Join(Request(1));
  policy_->Leave(taught, now_, actions_);
  const Pin held = Get(slow);
  ASSERT_NE(CopyOf(weights_, 1), nullptr);  // It is used in a second, one module ahead.
  Policy::JoinRequest request = Request(1);
  request.weights = policy_->AddWeights({20, 10, 10});
  request.routes = {{{}, {}, 20, -1, -1, 0}, {{}, {}, 10, -1, -1, 0}, {{}, {}, 10, -1, -1, 0}};
  Join(request);
  ArriveAll();
  EXPECT_NE(CopyOf(request.weights, 2), nullptr);  // In two milliseconds, as long as its pace is not known.
  EXPECT_EQ(CopyOf(weights_, 1), nullptr);
}

TEST_F(PolicyRoomTest, NothingGivesWayToWhatIsNeededLater) {
  Make({10, 10}, 2 + 20);
  Join(RequestOther(10, 1));
  Join(Request(1));
  ArriveAll();
  EXPECT_NE(CopyOf(others_, 0), nullptr);
  EXPECT_NE(CopyOf(weights_, 0), nullptr);
  EXPECT_EQ(CopyOf(weights_, 1), nullptr);
}

TEST_F(PolicyRoomTest, WhatMayStayGivesWayLast) {
  Make({10, 10, 10}, 2 + 30);
  PolicyRider& rider = Join(KeepingTheFirst(1));
  Release(rider, Get(rider));
  const Pin held = Get(rider);
  ASSERT_NE(CopyOf(weights_, 2), nullptr);  // It is used sooner than the first one.
  Join(RequestOther(10, 1));
  EXPECT_NE(CopyOf(weights_, 0), nullptr);
  EXPECT_EQ(CopyOf(weights_, 2), nullptr);
}

TEST_F(PolicyRoomTest, WhatMayStayGivesWayOnlyToWhoWaits) {
  Make({10, 10}, 2 + 20);
  PolicyRider& rider = Join(KeepingTheFirst(1));
  Release(rider, Get(rider));
  const Pin held = Get(rider);
  PolicyRider& other = Join(RequestOther(10, 1));
  EXPECT_NE(CopyOf(weights_, 0), nullptr);
  Acquire(other);
  EXPECT_EQ(CopyOf(weights_, 0), nullptr);
  EXPECT_NE(CopyOf(others_, 0), nullptr);
}

// --- riders that go together

TEST_F(PolicyRoomTest, WhoIsFollowedTakesNothingThatItsFollowerNeedsSooner) {
  Make({10, 10, 10}, 2 + 20);
  PolicyRider& leader = Join(Request(1));
  PolicyRider& follower = Join(Request(1));
  for (int i = 0; i < 2; ++i) Release(leader, Get(leader));
  Pin held = Get(follower);
  Acquire(leader);
  EXPECT_NE(CopyOf(weights_, 1), nullptr);
  EXPECT_EQ(CopyOf(weights_, 2), nullptr);
  Release(follower, std::move(held));
  EXPECT_NE(CopyOf(weights_, 1), nullptr);
  EXPECT_NE(CopyOf(weights_, 2), nullptr);
}

TEST_F(PolicyRoomTest, NobodyIsHeldBackByALessUrgentFollower) {
  Make({10, 10, 10}, 2 + 20);
  PolicyRider& leader = Join(Request(1));
  Policy::JoinRequest batch = Request(1);
  batch.priority = Priority::kBatch;
  PolicyRider& follower = Join(batch);
  for (int i = 0; i < 2; ++i) Release(leader, Get(leader));
  const Pin held = Get(follower);
  Acquire(leader);
  EXPECT_EQ(CopyOf(weights_, 1), nullptr);
  EXPECT_NE(CopyOf(weights_, 2), nullptr);
}

TEST_F(PolicyRoomTest, NobodyIsHeldBackByAFollowerThatIsMuchSlower) {
  constexpr int kTogether = 10;
  Make(std::vector<int64_t>(kTogether + 3, 10), 3 + 20);
  PolicyRider& leader = Join(Request(1));
  PolicyRider& follower = Join(Request(2));
  for (int i = 0; i < kTogether; ++i) {
    Release(leader, Get(leader));
    policy_->Release(follower, Get(follower), absl::Seconds(1), now_, actions_);
  }
  for (int i = 0; i < 2; ++i) Release(leader, Get(leader));
  const Pin held = Get(follower);
  Acquire(leader);
  EXPECT_EQ(CopyOf(weights_, kTogether + 1), nullptr);
  EXPECT_NE(CopyOf(weights_, kTogether + 2), nullptr);
}

// --- what goes when a budget falls

TEST_F(PolicyRoomTest, WhatAFallenBudgetDoesNotAllowGoesBackToTheSystem) {
  Make({10, 10, 10}, kPlenty);
  Lap(Join(Keeping(1)));
  actions_.clear();
  policy_->SetBudget(Memory::kDevice, 15, now_, actions_);
  const std::vector<TrimCache> trims = Take<TrimCache>();
  ASSERT_EQ(trims.size(), 2u);  // What activations left, and then copies.
  EXPECT_EQ(trims[0].bytes, 1);
  EXPECT_EQ(trims[1].bytes, 15);
  policy_->Freed(Memory::kDevice, 16, now_, actions_);
  EXPECT_EQ(policy_->budget(Memory::kDevice).used_bytes(), 15);
}

TEST_F(PolicyRoomTest, AFallenBudgetTakesWhatIsUsedFarthest) {
  Make({10, 10, 10}, kPlenty);
  PolicyRider& rider = Join(Request(1));
  const Pin held = Get(rider);
  ASSERT_NE(CopyOf(weights_, 2), nullptr);
  policy_->SetBudget(Memory::kDevice, 1 + 20, now_, actions_);
  EXPECT_NE(CopyOf(weights_, 1), nullptr);
  EXPECT_EQ(CopyOf(weights_, 2), nullptr);
}

TEST_F(PolicyRoomTest, AFallenBudgetTakesWhatMayStayLast) {
  Make({10, 10, 10}, kPlenty);
  PolicyRider& rider = Join(KeepingTheFirst(1));
  Release(rider, Get(rider));
  const Pin held = Get(rider);
  ASSERT_NE(CopyOf(weights_, 2), nullptr);  // It is used sooner than the first one.
  policy_->SetBudget(Memory::kDevice, 1 + 20, now_, actions_);
  EXPECT_NE(CopyOf(weights_, 0), nullptr);
  EXPECT_EQ(CopyOf(weights_, 2), nullptr);
}

TEST_F(PolicyRoomTest, AFallenBudgetTakesAllButWhatIsPinnedAndThatOnceItIsNot) {
  Make({10, 10}, kPlenty);
  PolicyRider& rider = Join(Request(1));
  const Pin held = Get(rider);
  PolicyRider& other = Join(RequestOther(10, 1));
  Pin released = Get(other);
  ASSERT_NE(CopyOf(weights_, 1), nullptr);
  policy_->SetBudget(Memory::kDevice, 0, now_, actions_);
  EXPECT_EQ(UsedBytes(), 2 + 20);
  EXPECT_EQ(CopyOf(weights_, 1), nullptr);
  Release(other, std::move(released));
  EXPECT_EQ(UsedBytes(), 2 + 10);  // The floor.
}

// --- the cache

TEST_F(PolicyRoomTest, WhatTheCacheHasIsUsedAgain) {
  Make({10, 6}, kPlenty);
  PolicyRider& rider = Join(Request(1));
  Lap(rider);
  ASSERT_EQ(policy_->budget(Memory::kDevice).cached_bytes, 1 + 16);
  Join(RequestOther(16, 1));
  EXPECT_EQ(Take<StartLoad>().at(0).targets.back()->grown_bytes, 0);
}

TEST_F(PolicyRoomTest, ActivationsTakeWhatCopiesLeftAndLeaveItToCopies) {
  Make({10, 6}, 1 + 16 + 10);
  Lap(Join(Request(1)));
  actions_.clear();
  PolicyRider& rider = Join(Request(17));
  EXPECT_EQ(Take<Admit>().at(0).grown_bytes, 0);
  EXPECT_EQ(policy_->budget(Memory::kDevice).cached_bytes, 0);
  policy_->Cancel(rider, absl::CancelledError(""), now_, actions_);
  policy_->Leave(rider, now_, actions_);
  EXPECT_EQ(policy_->budget(Memory::kDevice).cached_bytes, 17);
}

TEST_F(PolicyRoomTest, ActivationsThatTheCacheHasTooLittleForTakeFreshMemoryWhereTheBudgetAllows) {
  Make({10, 6}, 1 + 16 + 30 + 10);
  Lap(Join(Request(1)));
  actions_.clear();
  Join(Request(30));
  EXPECT_EQ(Take<Admit>().at(0).grown_bytes, 30);
}

TEST_F(PolicyRoomTest, MemoryForActivationsThatTheSystemDidNotGiveIsNotInTheCache) {
  Make({10}, kPlenty);
  PolicyRider& rider = Join(Request(8));
  policy_->Cancel(rider, absl::CancelledError(""), now_, actions_);
  policy_->Leave(rider, now_, actions_, /*lost_bytes=*/5);
  ArriveAll();
  EXPECT_EQ(policy_->budget(Memory::kDevice).cached_bytes, 3 + 10);
}

TEST_F(PolicyRoomTest, WhatTheWindowOfWiderModulesTookGoesBackWhenNarrowerOnesAreLeft) {
  Make({40, 10, 40, 10}, kPlenty);
  std::vector<Route> narrow = Request(0).routes;
  narrow[0] = narrow[2] = {};
  PolicyRider& first = Join(Request(5));
  PolicyRider& next = **policy_->JoinLap(first, narrow, std::nullopt, now_, actions_);
  while (!first.passed_all()) Release(first, Get(first));
  EXPECT_EQ(policy_->budget(Memory::kDevice).leaving_bytes, 0);
  ASSERT_GE(policy_->budget(Memory::kDevice).cached_bytes, 40);
  policy_->Leave(first, now_, actions_, 0, &next);
  EXPECT_EQ(policy_->budget(Memory::kDevice).cached_bytes, 0);
  const int64_t went = policy_->budget(Memory::kDevice).leaving_bytes;
  EXPECT_GE(went, 40);
  PolicyRider& last = **policy_->JoinLap(next, narrow, std::nullopt, now_, actions_);
  while (!next.passed_all()) Release(next, Get(next));
  policy_->Leave(next, now_, actions_, 0, &last);
  Lap(last);
  EXPECT_EQ(policy_->budget(Memory::kDevice).leaving_bytes, went);  // The rest is for who comes next.
}

TEST_F(PolicyRoomTest, TheCacheStaysWhereWhoNeedsWiderModulesOnlyWaits) {
  Make({10, 10}, 70);
  Lap(Join(Request(1)));
  Join(Request(15));
  PolicyRider& waits = Join(RequestOther(19, 36));  // Until what is on its way has arrived.
  ASSERT_FALSE(waits.admitted);
  ASSERT_GT(policy_->budget(Memory::kDevice).cached_bytes, 0);
  policy_->SetBudget(Memory::kDevice, 70, now_, actions_);
  EXPECT_EQ(policy_->budget(Memory::kDevice).leaving_bytes, 0);
}

// LibTorch takes it of the system.
TEST_F(PolicyRoomTest, InHostMemoryWhatCopiesLeftGoesBackBeforeActivationsTakeIt) {
  in_host_memory_ = true;
  Make({40, 40}, 100);
  Lap(Join(Request(1)));
  actions_.clear();
  PolicyRider& rider = Join(Request(60));
  EXPECT_EQ(Take<TrimCache>().at(0).bytes, 40);
  EXPECT_FALSE(rider.admitted);
  policy_->Freed(Memory::kDevice, 40, now_, actions_);
  EXPECT_EQ(Take<Admit>().at(0).grown_bytes, 60);
}

TEST_F(PolicyRoomTest, ACacheThatIsTooSmallIsLeftWhereTheBudgetAllows) {
  Make({10, 6}, 16 + 20 + 1);
  Lap(Join(Request(1)));
  Join(RequestOther(20, 1));
  EXPECT_EQ(Take<StartLoad>().at(0).targets.back()->grown_bytes, 20);
  EXPECT_EQ(policy_->budget(Memory::kDevice).cached_bytes, 16);
}

TEST_F(PolicyRoomTest, ACacheThatIsTooSmallIsUsedUpWhereTheBudgetDoesNot) {
  Make({10, 6}, 16 + 20);
  Lap(Join(Request(1)));
  Join(RequestOther(20, 1));
  EXPECT_EQ(Take<StartLoad>().at(0).targets.back()->grown_bytes, 4);
  EXPECT_EQ(policy_->budget(Memory::kDevice).cached_bytes, 0);
}

// There pages are moved, and what is left unused would be memory of the process that nothing is in.
TEST_F(PolicyRoomTest, InHostMemoryACacheThatIsTooSmallIsUsedUp) {
  in_host_memory_ = true;
  Make({10, 6}, kPlenty);
  Lap(Join(Request(1)));
  Join(RequestOther(20, 1));
  EXPECT_EQ(Take<StartLoad>().at(0).targets.back()->grown_bytes, 4);
  EXPECT_EQ(policy_->budget(Memory::kDevice).cached_bytes, 0);
}

}  // namespace
}  // namespace ditserve
