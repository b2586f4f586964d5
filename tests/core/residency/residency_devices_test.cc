// What one device's riders have to do with another device: nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "tests/testing/residency_fixture.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using Fixture = ResidencyFixture;
using Pass = ResidencyFixture::Pass;
constexpr int kModules = Fixture::kModules;

// Is done with no copy, or gives no memory, while it stands still.
class StandingDevice final : public FakeDevice {
 public:
  using FakeDevice::FakeDevice;

  void Stand(bool for_copies, bool for_memory, bool for_operations = false) {
    const absl::MutexLock lock(&mutex_);
    operations_pass_ = !for_operations;
    copies_pass_ = !for_copies;
    gives_memory_ = !for_memory;
  }
  void GoOn() { Stand(false, false); }
  void AwaitCopies(int count) {
    const absl::MutexLock lock(&mutex_);
    const auto has = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return copies_ >= count; };
    mutex_.Await(absl::Condition(&has));
  }

  absl::StatusOr<EventPtr> Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) override {
    DITSERVE_RETURN_IF_ERROR(FakeDevice::Enqueue(conversion, after).status());
    const absl::MutexLock lock(&mutex_);
    ++copies_;
    return std::make_shared<Passed>(this, &copies_pass_);
  }
  absl::StatusOr<EventPtr> RecordOperations() override {
    const absl::MutexLock lock(&mutex_);
    if (operations_pass_) return nullptr;
    return std::make_shared<Passed>(this, &operations_pass_);
  }
  absl::Status Commit(Memory memory, std::byte* begin, int64_t bytes) override {
    if (!IsHost(memory)) {
      const absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&gives_memory_));
    }
    return FakeDevice::Commit(memory, begin, bytes);
  }

 private:
  // What the device is done with once it `passes`.
  class Passed final : public Event {
   public:
    Passed(StandingDevice* of, const bool* passes) : of_(of), passes_(passes) {}
    bool Done() override {
      const absl::MutexLock lock(&of_->mutex_);
      return *passes_;
    }
    absl::Status Wait() override {
      const absl::MutexLock lock(&of_->mutex_);
      of_->mutex_.Await(absl::Condition(passes_));
      return absl::OkStatus();
    }

   private:
    StandingDevice* const of_;
    const bool* const passes_;
  };

  absl::Mutex mutex_;
  bool operations_pass_ ABSL_GUARDED_BY(mutex_) = true;
  bool copies_pass_ ABSL_GUARDED_BY(mutex_) = true;
  bool gives_memory_ ABSL_GUARDED_BY(mutex_) = true;
  int copies_ ABSL_GUARDED_BY(mutex_) = 0;
};

class ResidencyDevicesTest : public ::testing::Test {
 protected:
  static std::vector<std::unique_ptr<FakeDevice>> MakeDevices(StandingDevice* first) {
    std::vector<std::unique_ptr<FakeDevice>> devices;
    devices.emplace_back(first);
    devices.push_back(std::make_unique<StandingDevice>(/*computes_in_host_memory=*/false, DeviceMemory(1)));
    return devices;
  }
  static RideOptions On(int device) {
    RideOptions options;
    options.activation_bytes = 100;
    options.device = device;
    return options;
  }

  StandingDevice* const standing_ = new StandingDevice;  // The fixture's.
  Fixture fixture_{FixtureModel::Even(),
                   MakeDevices(standing_),
                   {kModules * Fixture::kCopyBytes, 4 * Fixture::kCopyBytes, 4 * Fixture::kCopyBytes}};
};

TEST_F(ResidencyDevicesTest, WhoseCopiesNeverPassHoldsUpNoOtherAndTakesNothingOfItsRate) {
  standing_->Stand(/*for_copies=*/true, /*for_memory=*/false);
  Pass stands(fixture_, Fixture::Disk(), On(0));
  standing_->AwaitCopies(Fixture::kThreads);  // It has all the slots that it gets.
  absl::Mutex mutex;
  int reading = 0, most = 0;
  fixture_.files.BeforeEachRead([&](void*, size_t) {
    const absl::MutexLock lock(&mutex);
    most = std::max(most, ++reading);
    const auto all_read = [&] { return most == Fixture::kThreads; };
    mutex.Await(absl::Condition(&all_read));
    --reading;
  });
  Pass goes_on(fixture_, Fixture::Disk(), On(1));
  EXPECT_THAT(goes_on.Wait(), IsOk());
  Pass and_on(fixture_, Fixture::HostOffload(), On(1));
  EXPECT_THAT(and_on.Wait(), IsOk());
  standing_->GoOn();
  EXPECT_THAT(stands.Wait(), IsOk());
  fixture_.Settle();
  fixture_.CheckInvariants();
}

// Neither keeps anything, and loads are seldom asked for at the same moment: what one has read stands in a slot.
TEST_F(ResidencyDevicesTest, ThoseWhoGoInStepReadHardlyAModuleTwice) {
  absl::Mutex mutex;
  std::array<ModuleIndex, 2> at = {-1, -1};
  const auto in_step = [&](size_t device) {
    return [&, device](ModuleIndex module, Rider&) {
      const absl::MutexLock lock(&mutex);
      at[device] = module;
      const auto together = [&] { return at[1 - device] >= module; };
      mutex.Await(absl::Condition(&together));
    };
  };
  const int64_t before = fixture_.files.reads();
  Pass one(fixture_, Fixture::Disk(), On(0), in_step(0)), other(fixture_, Fixture::Disk(), On(1), in_step(1));
  EXPECT_THAT(one.Wait(), IsOk());
  EXPECT_THAT(other.Wait(), IsOk());
  const int64_t reads = fixture_.files.reads() - before;
  RecordProperty("reads", static_cast<int>(reads));
  EXPECT_LT(reads, kModules * 3 / 2) << "one that holds as many slots of the other as it may reads itself";
  EXPECT_EQ(one.account().disk_read_bytes + other.account().disk_read_bytes, reads * Fixture::kCopyBytes);
}

TEST_F(ResidencyDevicesTest, WhoIsCancelledWhileItsMemoryIsTakenIsToldWhyItEnded) {
  standing_->Stand(/*for_copies=*/false, /*for_memory=*/true);
  standing_->GiveAtMost(Memory::kDevice, 0);
  Pass pass(fixture_, Fixture::Disk(), On(0));
  pass.Cancel(absl::CancelledError("told"));
  standing_->GoOn();
  EXPECT_THAT(pass.Wait(), StatusIs(absl::StatusCode::kCancelled, "told"));
}

// Events come more often than somebody looks.
TEST_F(ResidencyDevicesTest, WhatOperationsReadToTheirEndIsGivenBackWhateverElseHappens) {
  EXPECT_THAT(fixture_.manager->SetBudget(Memory::kDevice, 2 * kModules * Fixture::kCopyBytes), IsOk());
  EXPECT_THAT(Pass(fixture_, Fixture::Resident(), On(0)).Wait(), IsOk());
  standing_->Stand(/*for_copies=*/false, /*for_memory=*/false, /*for_operations=*/true);
  EXPECT_THAT(Pass(fixture_, Fixture::Resident(), On(0)).Wait(), IsOk());  // All is there.
  EXPECT_THAT(fixture_.manager->SetBudget(Memory::kDevice, Fixture::kCopyBytes), IsOk());
  const auto held = [&] { return fixture_.ledger.Usage(Memory::kDevice).total_bytes(); };
  EXPECT_GT(held(), Fixture::kCopyBytes);
  standing_->GoOn();
  for (const absl::Time end = absl::Now() + absl::Seconds(10); held() > Fixture::kCopyBytes && absl::Now() < end;) {
    fixture_.manager->SetPressure(Memory::kHost, MemoryBudget::kUnlimited);
  }
  EXPECT_LE(held(), Fixture::kCopyBytes);
}

TEST_F(ResidencyDevicesTest, WhichGivesNoMemoryHoldsUpNoOther) {
  standing_->Stand(/*for_copies=*/false, /*for_memory=*/true);
  Pass stands(fixture_, Fixture::Disk(), On(0)), too(fixture_, Fixture::Disk(), On(0));
  Pass goes_on(fixture_, Fixture::Disk(), On(1));
  EXPECT_THAT(goes_on.Wait(), IsOk());
  standing_->GoOn();
  EXPECT_THAT(stands.Wait(), IsOk());
  EXPECT_THAT(too.Wait(), IsOk());
}

}  // namespace
}  // namespace ditserve
