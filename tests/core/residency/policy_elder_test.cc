// Who waited too long gets what comes free.
#include <gtest/gtest.h>

#include <optional>
#include <utility>
#include <vector>

#include "core/residency/policy.h"
#include "tests/core/residency/policy_fixture.h"

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

}  // namespace
}  // namespace ditserve
