#ifndef DITSERVE_TESTS_CORE_RESIDENCY_POLICY_POLICY_FIXTURE_H_
#define DITSERVE_TESTS_CORE_RESIDENCY_POLICY_POLICY_FIXTURE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "core/residency/policy/policy.h"

namespace ditserve {

inline constexpr absl::Duration kAgeing = absl::Milliseconds(10);

// One set of weights, forms that are all made from the first; each test tells the events.
class PolicyTest : public testing::Test {
 protected:
  void Make(std::vector<int64_t> modules, int64_t device_budget, PolicyOptions options = {}, size_t devices = 1) {
    options.ageing = kAgeing;
    std::vector<int64_t> budgets(devices + 1, device_budget);
    budgets.front() = 0;
    policy_.emplace(options, std::vector<PolicyDevice>(devices, {in_host_memory_}), std::vector<int64_t>(devices + 1),
                    budgets, [](FormId from, FormId to) { return from == 0 || from == to; });
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

  // Of other weights, which have one module.
  Policy::JoinRequest RequestOther(int64_t module_bytes, int64_t activations, FormId compute = 0) {
    Policy::JoinRequest request;
    if (others_ < 0) others_ = policy_->AddWeights({module_bytes});
    request.weights = others_;
    request.activation_bytes = activations;
    request.join = JoinPolicy::kImmediate;
    request.routes.push_back({{}, {}, module_bytes, -1, -1, compute});
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

  // The loads that were started arrive, and those that follow from it.
  void ArriveAll() {
    constexpr int kMost = 100;  // What goes round in circles fails.
    for (int i = 0; i < kMost; ++i) {
      const auto start = std::find_if(actions_.begin(), actions_.end(),
                                      [](const Action& each) { return std::holds_alternative<StartLoad>(each); });
      if (start == actions_.end()) return;
      const LoadId load = std::get<StartLoad>(*start).load;
      actions_.erase(start);
      Arrive(load);
    }
    ADD_FAILURE() << "loads follow from one another without end";
  }

  // What the rider was granted; null: nothing yet.
  std::optional<Pin> Granted(const PolicyRider& rider) {
    for (Action& action : actions_) {
      auto* const grant = std::get_if<Grant>(&action);
      if (grant != nullptr && grant->rider == &rider && grant->pin.copy() != nullptr) return std::move(grant->pin);
    }
    return std::nullopt;
  }

  // The rider's next module, once all loads have arrived.
  Pin Get(PolicyRider& rider) {
    if (std::optional<Pin> pin = Acquire(rider)) return *std::move(pin);
    ArriveAll();
    std::optional<Pin> pin = Granted(rider);
    EXPECT_TRUE(pin.has_value()) << "module " << rider.next;
    return pin ? *std::move(pin) : Pin();
  }

  void Release(PolicyRider& rider, Pin pin) {
    ASSERT_NE(pin.copy(), nullptr);
    policy_->Release(rider, std::move(pin), absl::ZeroDuration(), now_, actions_);
  }

  // It computes with all that is before it, and leaves.
  void Lap(PolicyRider& rider) {
    while (!rider.passed_all()) {
      Pin pin = Get(rider);
      ASSERT_NE(pin.copy(), nullptr);
      Release(rider, std::move(pin));
    }
    policy_->Leave(rider, now_, actions_);
  }

  void Wait(absl::Duration time) {
    now_ += time;
    policy_->Tick(now_, actions_);
  }

  // Null if there is none on the device.
  Copy* CopyOf(WeightsId weights, ModuleIndex module, FormId form = 0) const {
    return policy_->copies().Find({weights, module, form, Memory::kDevice});
  }

  void CheckInvariants() { EXPECT_TRUE(policy_->Check().ok()) << policy_->Check().message(); }
  void TearDown() override { CheckInvariants(); }

  bool in_host_memory_ = false;  // Of devices that Make makes.
  std::optional<Policy> policy_;
  std::vector<int64_t> modules_;
  WeightsId weights_ = -1;
  WeightsId others_ = -1;  // Of RequestOther.
  absl::Duration now_;
  Actions actions_;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_CORE_RESIDENCY_POLICY_POLICY_FIXTURE_H_
