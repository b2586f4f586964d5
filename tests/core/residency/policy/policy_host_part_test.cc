// What requests hold in the host's memory beside activations in a device's own.
#include "core/base/error_details.h"
#include "tests/core/residency/policy/policy_fixture.h"

namespace ditserve {
namespace {

class PolicyHostPartTest : public PolicyTest {
 protected:
  void MakeOn(size_t devices, int64_t host_budget, std::vector<int64_t> modules = {10}) {
    Make(std::move(modules), 100, {}, devices);
    policy_->SetBudget(Memory::kHost, host_budget, now_, actions_);
  }
  Policy::JoinRequest RequestOf(int64_t host_bytes, std::vector<Stop> stops = {}, int device = 0) const {
    Policy::JoinRequest request = Request(1, std::move(stops), stops.empty() ? 0 : 1);
    request.host_bytes = host_bytes;
    request.device = DeviceMemory(device);
    return request;
  }
  const MemoryBudget& host() const { return policy_->budget(Memory::kHost); }
};

TEST_F(PolicyHostPartTest, NeverIsJudgedByTheHostsBudgetToo) {
  MakeOn(1, 50);
  const absl::Status never = policy_->Join(RequestOf(51), now_, actions_).status();
  EXPECT_EQ(never.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ShortageOf(never)->memory, Memory::kHost);
  EXPECT_EQ(ShortageOf(never)->needed_bytes, 51);
  policy_->SetPressure(Memory::kHost, 0, now_, actions_);
  const PolicyRider& later = Join(RequestOf(50));
  EXPECT_FALSE(later.admitted);
  policy_->SetPressure(Memory::kHost, MemoryBudget::kUnlimited, now_, actions_);
  EXPECT_TRUE(later.admitted);
}

TEST_F(PolicyHostPartTest, ItIsBookedFromAdmissionThroughAllLapsUntilTheLastLeaves) {
  MakeOn(1, 50);
  PolicyRider& first = Join(RequestOf(30));
  EXPECT_EQ(host().activation_bytes, 30);
  const PolicyRider& other = Join(RequestOf(30));
  EXPECT_FALSE(other.admitted);
  PolicyRider& lap = **policy_->JoinLap(first, Request(1).routes, std::nullopt, now_, actions_);
  Release(first, Get(first));
  policy_->Leave(first, now_, actions_, 0, &lap);
  EXPECT_EQ(host().activation_bytes, 30);
  EXPECT_FALSE(other.admitted);
  Lap(lap);
  EXPECT_TRUE(other.admitted);
  EXPECT_EQ(host().activation_bytes, 30);
}

TEST_F(PolicyHostPartTest, AHeadThatWaitsForTheHostWaitsForNothingOnItsDeviceAndNobodyOvertakesIt) {
  MakeOn(1, 50);
  PolicyRider& first = Join(RequestOf(30));
  const PolicyRider& head = Join(RequestOf(30));
  const PolicyRider& small = Join(RequestOf(1));
  EXPECT_FALSE(head.admitted);
  EXPECT_FALSE(small.admitted);
  Lap(first);
  EXPECT_TRUE(head.admitted);
  EXPECT_TRUE(small.admitted);
}

// Copies on the host are made where there is room, and are the first that goes.
TEST_F(PolicyHostPartTest, CopiesOnTheHostGoForItAndNoneAreMadeOfWhatItWaitsFor) {
  MakeOn(1, 40, {10, 10, 10});
  PolicyRider& first = Join(RequestOf(0, {{Tier::kHost, 0}}));
  ArriveAll();
  EXPECT_EQ(host().copy_bytes, 30);
  const PolicyRider& head = Join(RequestOf(20));
  EXPECT_FALSE(head.admitted);
  EXPECT_EQ(Take<DropCopy>().size(), 1u);
  const std::vector<TrimCache> trims = Take<TrimCache>();
  EXPECT_EQ(host().leaving_bytes, 10);
  Release(first, Get(first));
  EXPECT_EQ(host().copy_bytes, 20) << "nothing takes what it waits for";
  policy_->Freed(Memory::kHost, 10, now_, actions_);
  EXPECT_TRUE(head.admitted);
  EXPECT_EQ(host().used_bytes(), 40);
}

TEST_F(PolicyHostPartTest, WhatLoadsReadThereGoesOnceTheyAreOver) {
  MakeOn(1, 10);
  PolicyRider& first = Join(RequestOf(0, {{Tier::kHost, 0}}));
  const std::vector<StartLoad> loads = Take<StartLoad>();
  ASSERT_EQ(loads.size(), 1u);
  policy_->Enqueued(loads[0].load, now_, actions_);
  const PolicyRider& head = Join(RequestOf(10));
  Wait(kAgeing);
  EXPECT_EQ(policy_->elder(Memory::kDevice), &head);
  EXPECT_EQ(host().copy_bytes, 10);
  policy_->Finished(loads[0].load, now_, actions_);
  EXPECT_EQ(host().copy_bytes, 0);
  policy_->Freed(Memory::kHost, 10, now_, actions_);
  EXPECT_TRUE(head.admitted);
  EXPECT_TRUE(first.admitted);
}

// Otherwise one load after the other could hold it, and the head would wait for ever.
TEST_F(PolicyHostPartTest, WhatGoesForOneThatWaitedTooLongIsReadByNoLoadThatBeginsThen) {
  MakeOn(2, 10);
  Join(RequestOf(0, {{Tier::kHost, 0}}));
  const std::vector<StartLoad> loads = Take<StartLoad>();
  ASSERT_EQ(loads.size(), 1u);
  policy_->Enqueued(loads[0].load, now_, actions_);
  const PolicyRider& head = Join(RequestOf(10));
  Wait(kAgeing);
  Join(RequestOf(0, {{Tier::kHost, 0}}, 1));
  EXPECT_EQ(Take<StartLoad>().size(), 1u);
  policy_->Finished(loads[0].load, now_, actions_);
  EXPECT_EQ(host().copy_bytes, 0) << "the other device's load reads the checkpoint";
  policy_->Freed(Memory::kHost, 10, now_, actions_);
  EXPECT_TRUE(head.admitted);
}

TEST_F(PolicyHostPartTest, OfTheHeadsOfTwoDevicesWhoCameFirstIsLetInFirst) {
  MakeOn(2, 50);
  PolicyRider& first = Join(RequestOf(30));
  const PolicyRider& there = Join(RequestOf(40, {}, 1));
  const PolicyRider& here = Join(RequestOf(15));
  EXPECT_FALSE(there.admitted);
  EXPECT_FALSE(here.admitted) << "it would fit, and the other would wait for ever";
  Lap(first);
  EXPECT_TRUE(there.admitted);
  EXPECT_FALSE(here.admitted);
}

TEST_F(PolicyHostPartTest, WhoIsLetInBeforeTheHeadOfItsDeviceLetsNobodyOvertakeThat) {
  MakeOn(2, 50);
  PolicyRider& first = Join(RequestOf(30));
  Policy::JoinRequest batch = RequestOf(40, {}, 1);
  batch.priority = Priority::kBatch;
  const PolicyRider& there = Join(batch);
  batch = RequestOf(15);
  batch.priority = Priority::kBatch;
  const PolicyRider& here = Join(batch);
  EXPECT_TRUE(Join(RequestOf(0, {}, 1)).admitted);
  EXPECT_FALSE(here.admitted) << "it came after the one that waits there";
  Lap(first);
  EXPECT_TRUE(there.admitted);
}

TEST_F(PolicyHostPartTest, WhatIsOnItsWayToAHeadNoLaterOneOnAnotherDeviceTakes) {
  MakeOn(2, 50, {10, 10, 10});
  Join(RequestOf(0, {{Tier::kHost, 0}}));
  ArriveAll();
  EXPECT_EQ(host().copy_bytes, 30);
  const PolicyRider& first = Join(RequestOf(40));
  EXPECT_EQ(host().leaving_bytes, 20);
  const PolicyRider& later = Join(RequestOf(10, {}, 1));
  EXPECT_FALSE(later.admitted) << "20 are free, and the other waits for them, too";
  policy_->Freed(Memory::kHost, 20, now_, actions_);
  EXPECT_TRUE(first.admitted);
  policy_->Freed(Memory::kHost, 10, now_, actions_);
  EXPECT_TRUE(later.admitted);
}

TEST_F(PolicyHostPartTest, WhomPressureAloneKeepsOutHoldsUpNobodyOnAnotherDevice) {
  MakeOn(2, 50);
  policy_->SetPressure(Memory::kHost, 20, now_, actions_);
  const PolicyRider& there = Join(RequestOf(40, {}, 1));
  EXPECT_FALSE(there.admitted);
  EXPECT_TRUE(Join(RequestOf(15)).admitted);
  policy_->SetPressure(Memory::kHost, MemoryBudget::kUnlimited, now_, actions_);
  EXPECT_FALSE(Join(RequestOf(1)).admitted) << "from here on it waits for those that ride";
}

TEST_F(PolicyHostPartTest, WhoWaitsForItsDeviceHoldsUpNobodyOnAnother) {
  MakeOn(2, 50);
  Policy::JoinRequest large = RequestOf(0, {}, 1);
  large.activation_bytes = 90;
  PolicyRider& first = Join(large);
  large.host_bytes = 40;
  const PolicyRider& there = Join(large);
  EXPECT_FALSE(there.admitted);
  EXPECT_TRUE(Join(RequestOf(30)).admitted);
  policy_->Cancel(first, absl::CancelledError(), now_, actions_);
}

}  // namespace
}  // namespace ditserve
