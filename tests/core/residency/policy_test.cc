#include "core/residency/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <utility>
#include <vector>

namespace ditserve {
namespace {

constexpr absl::Duration kAgeing = absl::Milliseconds(10);

// One device, one set of weights, forms that are all made from the first; each test tells the events.
class PolicyTest : public testing::Test {
 protected:
  void Make(std::vector<int64_t> modules, int64_t device_budget, PolicyOptions options = {}) {
    options.ageing = kAgeing;
    policy_.emplace(options, std::vector<PolicyDevice>{{}}, std::vector<int64_t>{0, 0},
                    std::vector<int64_t>{0, device_budget},
                    [](FormId from, FormId to) { return from == 0 || from == to; });
    modules_ = modules;
    weights_ = policy_->AddWeights(std::move(modules));
  }

  Policy::JoinRequest Request(int64_t activations, std::vector<Stop> stops = {}, FormId compute = 0) const {
    Policy::JoinRequest request;
    request.weights = weights_;
    request.activation_bytes = activations;
    request.join = JoinPolicy::kImmediate;
    for (const int64_t bytes : modules_) {
      request.routes.push_back({stops, std::vector<int64_t>(stops.size(), bytes), bytes, -1, -1, compute});
    }
    return request;
  }

  PolicyRider& Join(Policy::JoinRequest request) { return **policy_->Join(std::move(request), now_, actions_); }

  // What the rider has of its next module; null: it waits.
  std::optional<Pin> Acquire(PolicyRider& rider) { return *policy_->Acquire(rider, rider.next, now_, actions_); }

  template <typename T>
  std::vector<T> Take() {
    std::vector<T> taken;
    for (Action& action : actions_) {
      if (auto* one = std::get_if<T>(&action)) taken.push_back(std::move(*one));
    }
    actions_.clear();
    return taken;
  }

  void Arrive(LoadId load) {
    policy_->Enqueued(load, now_, actions_);
    policy_->Finished(load, now_, actions_);
  }

  void CheckInvariants() { EXPECT_TRUE(policy_->Check().ok()) << policy_->Check().message(); }
  void TearDown() override { CheckInvariants(); }

  std::optional<Policy> policy_;
  std::vector<int64_t> modules_;
  WeightsId weights_ = -1;
  absl::Duration now_;
  Actions actions_;
};

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

TEST_F(PolicyTest, WhoWaitedTooLongIsServedFirstWhateverItsPriority) {
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

TEST_F(PolicyTest, ASourceThatStandsInItsModulesWayGivesWay) {
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

TEST_F(PolicyTest, ARefusedModuleIsAskedForAgainAfterAPauseAndThenToldToItsRiderAlone) {
  Make({10}, 100);
  PolicyRider& rider = Join(Request(1));
  Acquire(rider);
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
  EXPECT_EQ(ends[0].why.message(), "refused");
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

TEST_F(PolicyTest, NobodyRidesAfterALessUrgentRider) {
  Make({10, 10}, 100);
  Policy::JoinRequest batch = Request(1);
  batch.priority = Priority::kBatch;
  Join(batch);
  Policy::JoinRequest request = Request(1);
  request.join = JoinPolicy::kWait;
  EXPECT_TRUE(Join(request).riding());
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
