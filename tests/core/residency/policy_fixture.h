#ifndef DITSERVE_TESTS_CORE_RESIDENCY_POLICY_FIXTURE_H_
#define DITSERVE_TESTS_CORE_RESIDENCY_POLICY_FIXTURE_H_

#include <gtest/gtest.h>

#include <optional>
#include <utility>
#include <vector>

#include "core/residency/policy.h"

namespace ditserve {

inline constexpr absl::Duration kAgeing = absl::Milliseconds(10);

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

}  // namespace ditserve

#endif  // DITSERVE_TESTS_CORE_RESIDENCY_POLICY_FIXTURE_H_
