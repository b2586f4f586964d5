#include "core/residency/pressure_guard.h"

#include <gtest/gtest.h>

#include "tests/testing/residency_fixture.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using Fixture = ResidencyFixture;
constexpr int64_t kCopy = Fixture::kCopyBytes;
constexpr int kModules = Fixture::kModules;
constexpr int64_t kReserve = (int64_t{1} << 40) / 50;  // Of the fake device's memory.

class PressureGuardTest : public ::testing::Test {
 protected:
  PressureGuardTest() : fixture_(kModules, 4), guard_({&fixture_.device}, &*fixture_.manager) {
    EXPECT_THAT(Fixture::Pass(fixture_, Fixture::Resident()).Wait(), IsOk());
    fixture_.Settle();
  }
  int64_t budget() { return fixture_.ledger.Usage(Memory::kDevice).wanted_bytes; }

  Fixture fixture_;
  PressureGuard guard_;
};

TEST_F(PressureGuardTest, WithoutPressureNothingChanges) {
  EXPECT_THAT(guard_.Check(), IsOk());
  EXPECT_EQ(budget(), kModules * kCopy);
}

TEST_F(PressureGuardTest, GivesBackWhatOthersNeed) {
  fixture_.device.SetAvailable(kReserve - 5 * kCopy);
  EXPECT_THAT(guard_.Check(), IsOk());
  EXPECT_EQ(budget(), (kModules - 5) * kCopy);
  EXPECT_EQ(fixture_.device.allocated_bytes(Memory::kDevice), (kModules - 5) * kCopy);
}

TEST_F(PressureGuardTest, TakesItAgainWhenTheyLeave) {
  fixture_.device.SetAvailable(kReserve - 5 * kCopy);
  EXPECT_THAT(guard_.Check(), IsOk());
  fixture_.device.SetAvailable(int64_t{1} << 40);
  EXPECT_THAT(guard_.Check(), IsOk());
  EXPECT_EQ(budget(), kModules * kCopy);
  EXPECT_THAT(Fixture::Pass(fixture_, Fixture::Resident()).Wait(), IsOk());
  EXPECT_EQ(fixture_.device_weights(), kModules * kCopy);
}

TEST_F(PressureGuardTest, NeverExceedsWhatWasConfigured) {
  EXPECT_THAT(fixture_.manager->SetBudget(Memory::kDevice, 3 * kCopy), IsOk());
  EXPECT_THAT(guard_.Check(), IsOk());
  EXPECT_EQ(budget(), 3 * kCopy);
}

TEST_F(PressureGuardTest, LeavesTheTransferSlots) {
  fixture_.device.SetAvailable(0);
  EXPECT_THAT(guard_.Check(), IsOk());
  EXPECT_EQ(fixture_.ledger.Usage(Memory::kHost).wanted_bytes, TransferEngine::StagingBytes(1, Fixture::kThreads));
  EXPECT_EQ(budget(), 0);
}

TEST_F(PressureGuardTest, LeavesAFiftiethAndOfADevicesOwnMemoryAtLeast512MiB) {
  constexpr int64_t kGiB = int64_t{1} << 30;
  const auto reserve = [&](Memory memory, int64_t total) {
    return PressureGuard::ReserveBytes(fixture_.device, memory, total);
  };
  EXPECT_EQ(reserve(Memory::kDevice, 100 * kGiB), 2 * kGiB);
  EXPECT_EQ(reserve(Memory::kDevice, 8 * kGiB), kGiB / 2);
  EXPECT_EQ(reserve(Memory::kDevice, kGiB / 4), kGiB / 4);
  EXPECT_EQ(reserve(Memory::kHost, 10 * kGiB), kGiB / 5);
}

// On a device that computes in host memory, the same memory for both: what is free is free once, and what one part
// holds is nobody else's to the other. The device's part could hold the model, and has what is not in the host's.
class SharedMemoryPressureTest : public ::testing::Test {
 protected:
  static constexpr int kHostCopies = 4;
  static constexpr int kDeviceCopies = kModules - kHostCopies;

  SharedMemoryPressureTest()
      : fixture_(kModules, kHostCopies, /*in_host_memory=*/true), guard_({&fixture_.device}, &*fixture_.manager) {
    EXPECT_THAT(Fixture::Pass(fixture_, Fixture::HostOffload()).Wait(), IsOk());
    EXPECT_THAT(Fixture::Pass(fixture_, Fixture::Resident()).Wait(), IsOk());
    fixture_.Settle();
    EXPECT_EQ(fixture_.device_weights(), kDeviceCopies * kCopy);
    EXPECT_EQ(fixture_.host_weights(), kHostCopies * kCopy);
  }
  // Checks while the bytes of `free` copies are left beyond the reserve; then the parts' budgets are of so many copies.
  void CheckWith(int64_t free, int64_t device, int64_t host) {
    SCOPED_TRACE(free);
    fixture_.device.SetAvailable(kReserve + free * kCopy);
    EXPECT_THAT(guard_.Check(), IsOk());
    const int64_t slots = TransferEngine::StagingBytes(1, Fixture::kThreads);
    EXPECT_EQ(fixture_.ledger.Usage(Memory::kDevice).wanted_bytes, device * kCopy);
    EXPECT_EQ(fixture_.ledger.Usage(Memory::kHost).wanted_bytes, slots + host * kCopy);
  }

  Fixture fixture_;
  PressureGuard guard_;
};

TEST_F(SharedMemoryPressureTest, WhereNothingIsFreeBothKeepWhatTheyHold) { CheckWith(0, kDeviceCopies, kHostCopies); }

TEST_F(SharedMemoryPressureTest, WhatIsBookedAndNotYetWrittenIsNotGivenTwice) {
  const auto booked = [&](Memory memory) { return fixture_.ledger.Usage(memory).total_bytes(); };
  fixture_.device.SetOwn(booked(Memory::kHost) + booked(Memory::kDevice) - 2 * kCopy);
  CheckWith(2, kDeviceCopies, kHostCopies);
}

TEST_F(SharedMemoryPressureTest, WhatOthersNeedIsGivenOnceAndByTheHostFirst) { CheckWith(-3, kDeviceCopies, 1); }

TEST_F(SharedMemoryPressureTest, TheDeviceGivesWhatTheHostHasNot) { CheckWith(-5, kDeviceCopies - 1, 0); }

TEST_F(SharedMemoryPressureTest, WhatIsFreeIsGivenOnceAndToTheDeviceFirst) {
  CheckWith(-6, kDeviceCopies - 2, 0);
  CheckWith(kModules - (kDeviceCopies - 2), kModules, 0);
  EXPECT_THAT(Fixture::Pass(fixture_, Fixture::Resident()).Wait(), IsOk());
  EXPECT_EQ(fixture_.device_weights(), kModules * kCopy);
  CheckWith(kHostCopies, kModules, kHostCopies);
}

// Each with memory of its own.
class DevicesPressureTest : public ::testing::Test {
 protected:
  static constexpr int64_t kFirst = kModules, kSecond = kModules + 1, kHost = 4;  // Copies in the budgets.

  DevicesPressureTest() {
    for (const int device : {0, 1}) {
      RideOptions options;
      options.device = device;
      EXPECT_THAT(Fixture::Pass(fixture_, Fixture::Resident(), options).Wait(), IsOk());
    }
    fixture_.Settle();
  }
  static std::vector<std::unique_ptr<FakeDevice>> Two() {
    std::vector<std::unique_ptr<FakeDevice>> devices;
    for (const int device : {0, 1}) devices.push_back(std::make_unique<FakeDevice>(false, DeviceMemory(device)));
    return devices;
  }
  // Checks while others leave so much of each device's memory; then the budgets are of so many copies.
  void CheckWith(int64_t of_first, int64_t of_second, int64_t first, int64_t second) {
    fixture_.devices[0]->SetAvailable(of_first);
    fixture_.devices[1]->SetAvailable(of_second);
    EXPECT_THAT(guard_.Check(), IsOk());
    EXPECT_EQ(fixture_.ledger.Usage(DeviceMemory(0)).wanted_bytes, first * kCopy);
    EXPECT_EQ(fixture_.ledger.Usage(DeviceMemory(1)).wanted_bytes, second * kCopy);
  }

  Fixture fixture_{FixtureModel::Even(), Two(), {kHost * kCopy, kFirst* kCopy, kSecond* kCopy}};
  PressureGuard guard_{{fixture_.devices[0].get(), fixture_.devices[1].get()}, &*fixture_.manager};
};

TEST_F(DevicesPressureTest, OnlyTheOneWhoseMemoryOthersNeedGivesWay) {
  constexpr int64_t kAll = int64_t{1} << 40;
  CheckWith(kAll, kReserve - 3 * kCopy, kFirst, kModules - 3);
  EXPECT_EQ(fixture_.devices[0]->allocated_bytes(DeviceMemory(0)), kFirst * kCopy);
  EXPECT_EQ(fixture_.devices[1]->allocated_bytes(DeviceMemory(1)), (kModules - 3) * kCopy);
  CheckWith(kReserve - 2 * kCopy, kAll, kModules - 2, kSecond);
  CheckWith(kAll, kAll, kFirst, kSecond);
}

}  // namespace
}  // namespace ditserve
