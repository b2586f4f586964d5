// Who waited too long gets what comes free.
#include <gtest/gtest.h>

#include <optional>
#include <utility>
#include <vector>

#include "core/residency/policy/policy.h"
#include "tests/core/residency/policy/policy_fixture.h"

namespace ditserve {
namespace {

using PolicyElderTest = PolicyTest;

TEST_F(PolicyElderTest, WhoWaitedTooLongIsServedFirstWhateverItsPriority) {
  PolicyOptions options;
  options.max_loads = 1;
  Make({10, 10}, 100, options);
  PolicyRider& busy = Join(Request(1));
  Acquire(busy);  // Takes the only slot.
  Policy::JoinRequest batch = Request(1, {}, /*compute=*/1);
  batch.priority = Priority::kBatch;
  batch.routes.erase(batch.routes.begin());
  const WeightsId others = policy_->AddWeights({10});
  batch.weights = others;
  PolicyRider& waits = Join(batch);
  Acquire(waits);
  EXPECT_EQ(policy_->elder(Memory::kDevice), nullptr);
  now_ += kAgeing;
  policy_->Tick(now_, actions_);
  EXPECT_EQ(policy_->elder(Memory::kDevice), &waits);
  const LoadId first = Take<StartLoad>().at(0).load;
  Arrive(first);
  const std::vector<StartLoad> loads = Take<StartLoad>();
  ASSERT_EQ(loads.size(), 1u);
  EXPECT_EQ(loads[0].weights, others);
}

TEST_F(PolicyElderTest, ASourceThatStandsInItsModulesWayGivesWay) {
  Make({10}, 11);
  PolicyRider& kept = Join(Request(1, {{Tier::kDevice, 0}}));
  Acquire(kept);
  Arrive(Take<StartLoad>().at(0).load);
  std::vector<Grant> grants = Take<Grant>();
  ASSERT_EQ(grants.size(), 1u);
  policy_->Release(kept, std::move(grants[0].pin), absl::ZeroDuration(), now_, actions_);
  policy_->Leave(kept, now_, actions_);
  actions_.clear();
  PolicyRider& rider = Join(Request(1, {}, /*compute=*/1));
  Acquire(rider);
  const std::vector<StartLoad> loads = Take<StartLoad>();
  ASSERT_EQ(loads.size(), 1u);
  EXPECT_EQ(loads[0].source, nullptr);  // From the checkpoint.
}

// --- the head of admission

TEST_F(PolicyElderTest, AHeadOfAdmissionThatFitsForTooLongIsServedFirst) {
  Make({10}, 31);
  PolicyRider& first = Join(Request(1));
  const Pin held = Get(first);
  Join(RequestOther(10, 1));  // Ten bytes more are on their way.
  PolicyRider& head = Join(Request(15));
  EXPECT_EQ(policy_->elder(Memory::kDevice), nullptr);
  Wait(kAgeing);
  EXPECT_EQ(policy_->elder(Memory::kDevice), &head);
}

TEST_F(PolicyElderTest, AdmissionTakesNothingThatComesFreeForTheElder) {
  Make({10}, 35);
  PolicyRider& first = Join(Request(1));
  PolicyRider& second = Join(RequestOther(10, 1));
  Pin held = Get(first), other = Get(second);
  Policy::JoinRequest request = Request(1);
  request.weights = policy_->AddWeights({20});
  request.routes = {{{}, {}, 20, -1, -1, 0}};
  PolicyRider& elder = Join(request);
  Acquire(elder);
  Wait(kAgeing);
  ASSERT_EQ(policy_->elder(Memory::kDevice), &elder);
  PolicyRider& head = Join(Request(8));  // Would fit beside the widest module, and into what is free.
  EXPECT_FALSE(head.admitted);
  Release(first, std::move(held));
  EXPECT_EQ(Take<StartLoad>().size(), 1u) << "the elder's";
  EXPECT_FALSE(head.admitted);
  Release(second, std::move(other));
  for (const TrimCache& trim : Take<TrimCache>()) policy_->Freed(trim.memory, trim.bytes, now_, actions_);
  EXPECT_TRUE(head.admitted);
}

// --- doom: what stands in the elder's way

TEST_F(PolicyElderTest, WhatGoesForTheElderIsLeasedByNobodyElse) {
  Make({10}, 13);  // Activations, and one module.
  PolicyRider& first = Join(Request(1));
  PolicyRider& second = Join(Request(1));
  Pin held = Get(first);
  PolicyRider& elder = Join(RequestOther(10, 1));
  Acquire(elder);
  Wait(kAgeing);
  EXPECT_FALSE(Acquire(second).has_value());
  EXPECT_FALSE(Granted(second).has_value());
  Release(first, std::move(held));
  ArriveAll();
  EXPECT_TRUE(Granted(elder).has_value());
}

TEST_F(PolicyElderTest, WhatGoesForTheElderIsLeasedByWhomItWasPromisedTo) {
  Make({10}, 13);
  PolicyRider& first = Join(Request(1));
  Acquire(first);
  PolicyRider& second = Join(Request(1));
  PolicyRider& elder = Join(RequestOther(10, 1));
  Wait(kAgeing / 2);
  Acquire(elder);
  Wait(kAgeing / 2);  // The first one's module is on its way, and is promised to it.
  Acquire(second);
  Wait(kAgeing / 2);
  ASSERT_EQ(policy_->elder(Memory::kDevice), &elder);
  ArriveAll();
  std::optional<Pin> pin = Granted(first);
  ASSERT_TRUE(pin.has_value());
  EXPECT_FALSE(Granted(second).has_value());
  Release(first, *std::move(pin));
  ArriveAll();
  EXPECT_TRUE(Granted(elder).has_value());
}

TEST_F(PolicyElderTest, WhatGoesForTheElderIsNoSource) {
  Make({10}, 100);
  PolicyRider& first = Join(Request(1));
  const Pin held = Get(first);
  Join(RequestOther(10, 1));
  PolicyRider& elder = Join(RequestOther(10, 1, /*compute=*/1));  // Made from what is on its way.
  Acquire(elder);
  policy_->SetPressure(Memory::kDevice, 0, now_, actions_);
  Wait(kAgeing);
  policy_->SetPressure(Memory::kDevice, MemoryBudget::kUnlimited, now_, actions_);
  ASSERT_EQ(policy_->elder(Memory::kDevice), &elder);
  actions_.clear();
  Join(Request(1, {}, /*compute=*/1));
  const std::vector<StartLoad> loads = Take<StartLoad>();
  ASSERT_EQ(loads.size(), 1u);
  EXPECT_EQ(loads[0].weights, weights_);
  EXPECT_EQ(loads[0].source, nullptr);  // From the checkpoint, though a copy is there that leads to it.
}

// --- refused memory

TEST_F(PolicyElderTest, WhoWasRefusedTakesNoFreshMemoryWhileCopiesAreLeft) {
  Make({10, 10}, 100);  // Of which the system gives less.
  PolicyRider& other = Join(Request(1));
  Pin held = Get(other);
  PolicyRider& elder = Join(RequestOther(20, 1));
  Acquire(elder);
  for (const StartLoad& load : Take<StartLoad>()) {
    policy_->Refused(load.load, Memory::kDevice, {0, 20}, absl::ResourceExhaustedError("refused"), now_, actions_);
  }
  Wait(absl::Seconds(1));
  ASSERT_EQ(policy_->elder(Memory::kDevice), &elder);
  EXPECT_TRUE(Take<StartLoad>().empty());
  Release(other, std::move(held));
  const std::vector<StartLoad> loads = Take<StartLoad>();
  ASSERT_FALSE(loads.empty());
  EXPECT_EQ(loads[0].weights, others_);
  EXPECT_EQ(loads[0].targets.back()->grown_bytes, 0);
}

// --- promises

TEST_F(PolicyElderTest, WhatArrivesForOneThatWaitedTooLongStaysUntilItsLease) {
  Make({10}, 100);
  PolicyRider& other = Join(RequestOther(10, 1));
  const Pin held = Get(other);
  PolicyRider& rider = Join(Request(1));
  Acquire(rider);
  Wait(kAgeing);
  policy_->SetPressure(Memory::kDevice, 0, now_, actions_);  // All that is not held is to go.
  ArriveAll();
  EXPECT_TRUE(Granted(rider).has_value());
}

TEST_F(PolicyElderTest, APromiseEndsWithItsLease) {
  Make({10}, 100);
  PolicyRider& rider = Join(Request(1));
  Acquire(rider);
  Wait(kAgeing);
  ArriveAll();
  std::optional<Pin> pin = Granted(rider);
  ASSERT_TRUE(pin.has_value());
  Release(rider, *std::move(pin));
  EXPECT_EQ(CopyOf(weights_, 0), nullptr);
}

TEST_F(PolicyElderTest, APromiseFallsWithItsRider) {
  Make({10}, 100);
  PolicyRider& rider = Join(Request(1));
  Acquire(rider);
  Wait(kAgeing);
  policy_->Cancel(rider, absl::CancelledError("gone"), now_, actions_);
  ArriveAll();
  EXPECT_EQ(CopyOf(weights_, 0), nullptr);
}

}  // namespace
}  // namespace ditserve
