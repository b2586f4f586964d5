#ifndef DITSERVE_TESTS_TESTING_RANDOM_TRACE_H_
#define DITSERVE_TESTS_TESTING_RANDOM_TRACE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "tests/testing/residency_fixture.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/suite_devices.h"

namespace ditserve {

// A model of uneven modules on one device or more, with budgets at any byte.
class RandomTrace {
 public:
  static constexpr int kProfiles = 8;
  static constexpr int kNarrowProfiles = 7;  // Without the one whose copies are twice as large.
  static Profile ProfileNumber(int number) {
    switch (number) {
      case 0:
        return ResidencyFixture::Disk();
      case 1:
        return ResidencyFixture::HostOffload();
      case 2:
        return ResidencyFixture::Resident();
      case 3:
        return ResidencyFixture::DiskDynamic(3 * ResidencyFixture::kCopyBytes);
      case 4:
        return ResidencyFixture::HostOffloadInFloat16();
      case 5:
        return ResidencyFixture::DiskDynamic(std::nullopt);
      case 6:
        return ResidencyFixture::Fp8();
      default:
        return ResidencyFixture::HostOffloadInFloat32();
    }
  }

  // The smallest budget of a device in which a pass by any of the first `profiles` runs, with such activations.
  static int64_t LeastBytes(const ResidencyFixture& fixture, int profiles, int64_t activation_bytes) {
    int64_t widest = 0;
    for (int i = 0; i < profiles; ++i) {
      widest = std::max(widest, fixture.manager->WindowBytes(fixture.model, ProfileNumber(i)));
    }
    // In a device's own memory they take whole granules, of a page.
    return widest + (activation_bytes + kHostPageBytes - 1) / kHostPageBytes * kHostPageBytes;
  }

  // On one device, for what is not about order.
  explicit RandomTrace(uint32_t seed) : random_(seed), profiles_(PickProfiles()) {
    std::vector<std::unique_ptr<FakeDevice>> device;
    device.push_back(MakeSuiteDevice(/*in_host_memory=*/Pick(4) == 0));
    fixture_ = std::make_unique<ResidencyFixture>(FixtureModel::Uneven(), std::move(device), Budgets(1));
    least_bytes_ = LeastBytes(*fixture_, profiles_, 2 * kActivationBytes);
  }
  // On so many that work late.
  RandomTrace(uint32_t seed, LateDevices& late, int devices) : random_(seed), profiles_(PickProfiles()) {
    fixture_ = std::make_unique<ResidencyFixture>(FixtureModel::Uneven(), late, Budgets(devices));
    least_bytes_ = LeastBytes(*fixture_, profiles_, 2 * kActivationBytes);
  }

  // Riders of all profiles, priorities and join policies come, some are cancelled, and budgets change meanwhile. Every
  // pass compares the values that it is given.
  void Run() {
    for (int i = 0; i < 24; ++i) {
      Join();
      if (Pick(3) == 0) ChangeBudget();
      if (Pick(4) == 0) passes_[static_cast<size_t>(Pick(static_cast<int>(passes_.size())))]->Wait().IgnoreError();
    }
    for (const auto& pass : passes_) {
      const absl::Status status = pass->Wait();
      EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
    }
    CheckEnd();
  }

 private:
  static constexpr int64_t kActivationBytes = 20'011;
  static constexpr int64_t kLargestBytes = 600'001;

  int Pick(int below) { return static_cast<int>(random_() % static_cast<uint32_t>(below)); }
  int PickProfiles() { return Pick(2) == 0 ? kProfiles : kNarrowProfiles; }
  std::vector<int64_t> Budgets(int devices) {
    budgets_.assign(static_cast<size_t>(1 + devices), kLargestBytes);
    budgets_.front() = Pick(kLargestBytes);
    return budgets_;
  }

  void Join() {
    const RideOptions options = {Pick(3) * kActivationBytes, Pick(2) == 0 ? Priority::kInteractive : Priority::kBatch,
                                 static_cast<JoinPolicy>(Pick(3)), Pick(static_cast<int>(fixture_->devices.size()))};
    const int cancelled_at = Pick(4) == 0 ? Pick(ResidencyFixture::kModules) : ResidencyFixture::kModules;
    passes_.push_back(std::make_unique<ResidencyFixture::Pass>(*fixture_, ProfileNumber(Pick(profiles_)), options,
                                                               [cancelled_at](ModuleIndex module, Rider& rider) {
                                                                 if (module == cancelled_at)
                                                                   rider.Cancel(absl::CancelledError("enough"));
                                                               }));
  }
  void ChangeBudget() {
    const Memory memory = DeviceMemory(Pick(static_cast<int>(fixture_->devices.size())));
    const int64_t bytes = least_bytes_ + Pick(static_cast<int>(kLargestBytes - least_bytes_));
    EXPECT_THAT(fixture_->manager->SetBudget(memory, bytes), IsOk());
    budgets_[static_cast<size_t>(memory)] = bytes;
  }

  void CheckEnd() {
    fixture_->Settle();
    EXPECT_THAT(fixture_->manager->Check(), IsOk());
    for (size_t i = 0; i < fixture_->devices.size(); ++i) {
      const Memory memory = DeviceMemory(static_cast<int>(i));
      EXPECT_LE(fixture_->ledger.Usage(memory).total_bytes(), budgets_[static_cast<size_t>(memory)]);
      EXPECT_LE(fixture_->devices[i]->most_allocated_bytes(memory), kLargestBytes);
      EXPECT_THAT(fixture_->manager->SetBudget(memory, 0), IsOk());
      fixture_->Settle();
      EXPECT_EQ(fixture_->ledger.Usage(memory).total_bytes(), 0);
      EXPECT_EQ(fixture_->devices[i]->allocated_bytes(memory), 0);
    }
  }

  std::mt19937 random_;
  const int profiles_;
  std::vector<int64_t> budgets_;  // As they were last asked for, by memory.
  std::unique_ptr<ResidencyFixture> fixture_;
  int64_t least_bytes_ = 0;
  std::vector<std::unique_ptr<ResidencyFixture::Pass>> passes_;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_RANDOM_TRACE_H_
