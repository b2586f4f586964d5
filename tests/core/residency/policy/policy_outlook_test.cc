// What the policy tells of requests that have not come.
#include "tests/core/residency/policy/policy_fixture.h"

namespace ditserve {
namespace {

class OutlookTest : public PolicyTest {
 protected:
  static constexpr double kAssumed = Estimates::kAssumedBytesPerSecond;

  Policy::JoinRequest On(int device, Policy::JoinRequest request) const {
    request.device = DeviceMemory(device);
    return request;
  }
  // It computes each module for as long as that, and leaves.
  void LapOf(PolicyRider& rider, absl::Duration module) {
    while (!rider.passed_all()) {
      Pin pin = Get(rider);
      ASSERT_NE(pin.copy(), nullptr);
      now_ += module;
      policy_->Release(rider, std::move(pin), module, now_, actions_);
    }
    policy_->Leave(rider, now_, actions_);
  }
  static absl::Duration Moving(int64_t bytes) { return absl::Seconds(static_cast<double>(bytes) / kAssumed); }
};

TEST_F(OutlookTest, AnIdleDeviceMovesTheModelAndHasNobody) {
  Make({10, 30}, 100, {}, 2);
  const RideOutlook outlook = policy_->Outlook(On(1, Request(1)));
  EXPECT_TRUE(outlook.fits.ok());
  EXPECT_EQ(outlook.requests, 0);
  EXPECT_EQ(outlook.wait, absl::ZeroDuration());
  EXPECT_EQ(outlook.moving, Moving(40));
  EXPECT_EQ(outlook.compute + outlook.compute_others, absl::ZeroDuration()) << "nothing was measured";
}

TEST_F(OutlookTest, WhatIsOnADeviceIsThereForThatDeviceAlone) {
  Make({10, 30}, 100, {}, 2);
  const std::vector<Stop> stays = {{Tier::kDevice, 0}};
  LapOf(Join(On(1, Request(1, stays))), absl::Seconds(1));
  EXPECT_EQ(policy_->Outlook(On(0, Request(1, stays))).moving, Moving(40));
  EXPECT_EQ(policy_->Outlook(On(1, Request(1, stays))).moving, absl::ZeroDuration());
}

TEST_F(OutlookTest, WhatIsMadeOfAnotherFormOnTheDeviceIsThere) {
  Make({10, 30}, 100, {}, 2);
  const std::vector<Stop> stays = {{Tier::kDevice, 0}};
  LapOf(Join(On(1, Request(1, stays, /*compute=*/1))), absl::Seconds(1));
  EXPECT_EQ(policy_->Outlook(On(1, Request(1, stays, 1))).moving, absl::ZeroDuration());
}

// It took time and moved nothing: that says nothing of how fast the device is.
TEST_F(OutlookTest, ADeviceWhoseFirstLoadFailedIsAsFastAsWasAssumed) {
  Make({10, 30}, 100, {}, 2);
  PolicyRider& rider = Join(On(1, Request(1)));
  Acquire(rider);
  for (const StartLoad& load : Take<StartLoad>()) {
    now_ += absl::Seconds(1);
    policy_->Failed(load.load, absl::UnavailableError("failed"), now_, actions_);
  }
  policy_->Leave(rider, now_, actions_);
  EXPECT_EQ(policy_->Outlook(On(1, Request(1))).moving, Moving(40));
}

TEST_F(OutlookTest, WhatIsOnItsWayForAnotherIsThere) {
  Make({10, 30}, 100, {}, 2);
  Join(RequestOther(50, 1));
  EXPECT_EQ(policy_->Outlook(On(0, RequestOther(50, 1))).moving, absl::ZeroDuration());
  EXPECT_EQ(policy_->Outlook(On(0, Request(1))).requests, 1);
  EXPECT_EQ(policy_->Outlook(On(1, Request(1))).requests, 0);
}

TEST_F(OutlookTest, OthersOfTheModelShareWhatIsMovedAndOthersOfOthersDoNot) {
  PolicyOptions options;
  options.max_loads = 1;
  Make({10, 30}, 100, options, 2);
  Join(Request(1));
  // The first module is on its way; the other one is moved for that rider too.
  EXPECT_EQ(policy_->Outlook(On(0, Request(1))).moving, Moving(30));
  EXPECT_EQ(policy_->Outlook(On(0, RequestOther(50, 1))).moving, Moving(50 + 30));
  EXPECT_EQ(policy_->Outlook(On(1, RequestOther(50, 1))).moving, Moving(50));
}

TEST_F(OutlookTest, WhatADeviceHasNotMeasuredIsAsOnAnother) {
  Make({10, 30}, 100, {}, 2);
  LapOf(Join(On(1, Request(2))), absl::Seconds(3));
  for (const int device : {0, 1}) {
    EXPECT_EQ(policy_->Outlook(On(device, Request(2))).compute, absl::Seconds(6)) << device;
    EXPECT_EQ(policy_->Outlook(On(device, Request(4))).compute, absl::Seconds(12)) << device;
  }
  LapOf(Join(On(0, Request(2))), absl::Seconds(1));
  EXPECT_EQ(policy_->Outlook(On(0, Request(2))).compute, absl::Seconds(2)) << "and its own once it has";
  EXPECT_EQ(policy_->Outlook(On(1, Request(2))).compute, absl::Seconds(6));
}

TEST_F(OutlookTest, ProcessorsAreSharedWithWhoIsAsUrgentAndLeftToWhoIsMoreUrgent) {
  Make({10, 30}, 100, {}, 1);
  LapOf(Join(Request(2)), absl::Seconds(3));
  PolicyRider& other = Join(Request(8));
  Release(other, Get(other));  // It has half of its 24 seconds before it.
  EXPECT_EQ(policy_->Outlook(Request(2)).compute_others, absl::Seconds(6)) << "no more than its own";
  EXPECT_EQ(policy_->Outlook(Request(20)).compute_others, absl::Seconds(12)) << "no more than is left";
  Policy::JoinRequest batch = Request(2);
  batch.priority = Priority::kBatch;
  EXPECT_EQ(policy_->Outlook(batch).compute_others, absl::Seconds(12));
  Join(batch);
  EXPECT_EQ(policy_->Outlook(Request(2)).compute_others, absl::Seconds(6)) << "who is less urgent waits";
  EXPECT_EQ(policy_->Outlook(Request(2)).requests, 2);
}

TEST_F(OutlookTest, WhoDoesNotFitNowWaitsAndWhoNeverDoesIsToldSo) {
  Make({10, 10}, 100, {}, 2);
  Join(Request(50));
  EXPECT_EQ(policy_->Outlook(Request(40)).wait, absl::ZeroDuration());
  EXPECT_GT(policy_->Outlook(Request(41)).wait, absl::ZeroDuration());
  EXPECT_EQ(policy_->Outlook(On(1, Request(41))).wait, absl::ZeroDuration());
  EXPECT_EQ(policy_->Outlook(Request(91)).fits.code(), absl::StatusCode::kFailedPrecondition);
  policy_->SetBudget(DeviceMemory(1), 200, now_, actions_);
  EXPECT_TRUE(policy_->Outlook(On(1, Request(91))).fits.ok());
}

}  // namespace
}  // namespace ditserve
