// How riders of a ResidencyManager share sweeps, and what changes of the budgets do to them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "core/base/error_details.h"
#include "tests/testing/residency_fixture.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/suite_devices.h"

namespace ditserve {
namespace {

using Fixture = ResidencyFixture;
using Pass = ResidencyFixture::Pass;
constexpr int kModules = Fixture::kModules;
constexpr int64_t kCopy = Fixture::kCopyBytes;
constexpr int64_t kModel = kModules * kCopy;

RideOptions With(JoinPolicy join) { return {0, Priority::kInteractive, join}; }

// A pass that stops before `module` until it is told to go on.
class HeldPass {
 public:
  HeldPass(Fixture& fixture, const Profile& profile, ModuleIndex module, const RideOptions& options = {})
      : pass_(fixture, profile, options, [this, module](ModuleIndex at, Rider&) {
          if (at != module) return;
          held_.Notify();
          go_.WaitForNotification();
        }) {}
  void AwaitHeld() { held_.WaitForNotification(); }
  void Go() { go_.Notify(); }
  absl::Status Wait() { return pass_.Wait(); }
  Pass& pass() { return pass_; }

 private:
  absl::Notification held_, go_;
  Pass pass_;
};

// On a device that does everything at once, and on one that works late and reports what nothing orders.
class OnBothDevices : public ::testing::TestWithParam<bool> {
 protected:
  ~OnBothDevices() override { EXPECT_THAT(late_.TakeRaces(), ::testing::IsEmpty()); }

  Fixture MakeFixture(int64_t device_copies, int64_t host_copies = 0, bool in_host_memory = false,
                      const ResidencyManager::Options& options = {}) {
    if (!GetParam() || in_host_memory) return Fixture(device_copies, host_copies, in_host_memory, options);
    return Fixture(FixtureModel::Even(), late_, {host_copies * kCopy, device_copies * kCopy}, options);
  }
  Fixture MakeFixtureOf(const FixtureModel::Modules& modules, int64_t device_bytes,
                        const ResidencyManager::Options& options = {}) {
    const std::vector<int64_t> budgets = {0, device_bytes};
    if (GetParam()) return Fixture(modules, late_, budgets, options);
    std::vector<std::unique_ptr<FakeDevice>> devices;
    devices.push_back(MakeSuiteDevice());
    return Fixture(modules, std::move(devices), budgets, options);
  }

 private:
  LateDevices late_{1};
};

class ResidencySharingTest : public OnBothDevices {};
class ResidencyBudgetTest : public OnBothDevices {};

const auto kNames = [](const auto& each) { return each.param ? "ADoubleOfADevice" : "AFake"; };
INSTANTIATE_TEST_SUITE_P(On, ResidencySharingTest, ::testing::Bool(), kNames);
INSTANTIATE_TEST_SUITE_P(On, ResidencyBudgetTest, ::testing::Bool(), kNames);

TEST_P(ResidencySharingTest, RidersThatStartTogetherMoveTheModelOnce) {
  for (const int riders : {2, 8, 32}) {
    ResidencyManager::Options options;
    options.max_riders = riders;
    Fixture fixture = MakeFixture(3, 0, false, options);
    HeldPass first(fixture, Fixture::Disk(), 0);
    std::vector<std::unique_ptr<Pass>> others;
    for (int i = 1; i < riders; ++i) others.push_back(std::make_unique<Pass>(fixture, Fixture::Disk()));
    first.Go();
    EXPECT_THAT(first.Wait(), IsOk());
    for (const auto& other : others) EXPECT_THAT(other->Wait(), IsOk());
    EXPECT_EQ(fixture.manager->Snapshot().transfers[0].bytes, kModel) << riders << " riders";
    fixture.CheckInvariants();
  }
}

TEST_P(ResidencySharingTest, ARiderIsGivenWhatIsAStopOnTheWayForAnother) {
  Fixture fixture = MakeFixture(4, kModules, /*in_host_memory=*/true);
  absl::Notification asks;
  std::unique_ptr<Pass> second;
  // While the first rider's module 0 is on its way, the second, which computes with the host's copy, asks for it.
  fixture.files.AfterNextRead([&] {
    second = std::make_unique<Pass>(fixture, Fixture::HostOffload(), RideOptions{}, [&](ModuleIndex module, Rider&) {
      if (module == 0) asks.Notify();
    });
    asks.WaitForNotification();
    absl::Notification asked;
    fixture.executor(0).Post([&] { asked.Notify(); });
    asked.WaitForNotification();
  });
  Pass first(fixture, Fixture::HostOffloadInFloat16());
  EXPECT_THAT(first.Wait(), IsOk());
  EXPECT_THAT(second->Wait(), IsOk());
}

TEST_P(ResidencySharingTest, ALateRiderMovesWhatItMissedAndSharesTheRest) {
  Fixture fixture = MakeFixture(4);
  HeldPass first(fixture, Fixture::Disk(), 4);
  first.AwaitHeld();
  Pass second(fixture, Fixture::Disk(), With(JoinPolicy::kImmediate));
  first.Go();
  EXPECT_THAT(first.Wait(), IsOk());
  EXPECT_THAT(second.Wait(), IsOk());
  // What the first had passed, and what it may have taken room for while it was ahead.
  EXPECT_LE(fixture.manager->Snapshot().transfers[0].bytes, kModel + 6 * kCopy);
  fixture.CheckInvariants();
}

TEST_P(ResidencySharingTest, ARiderThatWaitsBeginsWithTheNextSweepAndIsNotCountedInThisOne) {
  Fixture fixture = MakeFixture(4);
  HeldPass first(fixture, Fixture::Disk(), 6);
  first.AwaitHeld();
  Pass second(fixture, Fixture::Disk(), With(JoinPolicy::kWait));
  EXPECT_FALSE(second.admitted());
  const ResidencySnapshot snapshot = fixture.manager->Snapshot();
  ASSERT_EQ(snapshot.riders.size(), 2u);
  EXPECT_TRUE(snapshot.riders[1].waiting);
  first.Go();
  EXPECT_THAT(first.Wait(), IsOk());
  EXPECT_THAT(second.Wait(), IsOk());
  EXPECT_EQ(first.pass().account().most_riders, 1);
  EXPECT_TRUE(second.account().waited_for_sweep);
  EXPECT_TRUE(second.account().join.has_value());
  fixture.CheckInvariants();
}

TEST_P(ResidencySharingTest, TheFirstModulesOfTheNextSweepAreReadDuringThisOne) {
  Fixture fixture = MakeFixture(6);
  HeldPass first(fixture, Fixture::Disk(), kModules - 1);
  first.AwaitHeld();
  Pass second(fixture, Fixture::Disk(), With(JoinPolicy::kWait));
  while (fixture.manager->Loading()) {
  }
  EXPECT_EQ(fixture.manager->ModuleTiers(fixture.model)[0][0], Tier::kDevice);
  first.Go();
  EXPECT_THAT(second.Wait(), IsOk());
  EXPECT_EQ(fixture.manager->Snapshot().transfers[0].bytes, 2 * kModel);
}

TEST_P(ResidencySharingTest, ByDefaultARiderWaitsForASweepThatIsNearlyOver) {
  Fixture fixture = MakeFixture(3);
  HeldPass first(fixture, Fixture::Disk(), kModules - 2);
  first.AwaitHeld();
  Pass second(fixture, Fixture::Disk());
  EXPECT_TRUE(fixture.manager->Snapshot().riders.at(1).waiting);
  first.Go();
  EXPECT_THAT(second.Wait(), IsOk());
}

TEST_P(ResidencySharingTest, NobodyWaitsWhereNothingIsMoved) {
  Fixture fixture = MakeFixture(kModules);
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  HeldPass first(fixture, Fixture::Resident(), kModules - 2);
  first.AwaitHeld();
  Pass second(fixture, Fixture::Resident());
  EXPECT_FALSE(fixture.manager->Snapshot().riders.at(1).waiting);
  first.Go();
  EXPECT_THAT(second.Wait(), IsOk());
}

TEST_P(ResidencySharingTest, ARiderThatWaitsForASweepCanBeCancelled) {
  Fixture fixture = MakeFixture(3);
  HeldPass first(fixture, Fixture::Disk(), 6, {kCopy});
  first.AwaitHeld();
  Pass second(fixture, Fixture::Disk(), {kCopy, Priority::kInteractive, JoinPolicy::kWait});
  second.Cancel(absl::CancelledError("gone"));
  EXPECT_THAT(second.Wait(), StatusIs(absl::StatusCode::kCancelled, "gone"));
  first.Go();
  EXPECT_THAT(first.Wait(), IsOk());
  fixture.ReleaseIdle();
  EXPECT_EQ(fixture.ledger.Usage(Memory::kDevice).total_bytes(), 0);
}

TEST_P(ResidencySharingTest, ARiderThatIsCancelledAsItsTurnComesIsToldOnce) {
  Fixture fixture = MakeFixture(4);
  absl::Notification begun, told, ended;
  absl::StatusOr<std::unique_ptr<Rider>> first =
      fixture.manager->Join(fixture.model, Fixture::Disk(), {}, [&](const absl::Status&) { begun.Notify(); });
  begun.WaitForNotification();
  RideOptions waits;
  waits.join = JoinPolicy::kWait;
  absl::Status why;
  absl::StatusOr<std::unique_ptr<Rider>> second =
      fixture.manager->Join(fixture.model, Fixture::Disk(), waits, [&](absl::Status status) {
        why = std::move(status);
        told.Notify();
      });
  fixture.executor(0).Post([&] {
    (*second)->Cancel(absl::CancelledError("gone"));
    first->reset();
    fixture.executor(0).Post([&] { ended.Notify(); });  // Behind what would tell it once more.
  });
  told.WaitForNotification();
  ended.WaitForNotification();
  EXPECT_THAT(why, StatusIs(absl::StatusCode::kCancelled, "gone"));
  second->reset();
}

TEST_P(ResidencySharingTest, ACancelledSweepLetsThoseWhoWaitBegin) {
  Fixture fixture = MakeFixture(3);
  HeldPass first(fixture, Fixture::Disk(), 6);
  first.AwaitHeld();
  Pass second(fixture, Fixture::Disk(), With(JoinPolicy::kWait));
  first.pass().Cancel(absl::CancelledError("gone"));
  first.Go();
  EXPECT_THAT(second.Wait(), IsOk());
}

TEST_P(ResidencySharingTest, InteractiveRequestsAreAdmittedBeforeBatchOnes) {
  ResidencyManager::Options options;
  options.max_riders = 1;
  Fixture fixture = MakeFixture(4, 0, false, options);
  HeldPass first(fixture, Fixture::Disk(), 0);
  first.AwaitHeld();
  std::vector<char> order;
  const auto note = [&order](char who) {
    return [&order, who](ModuleIndex module, Rider&) {
      if (module == 0) order.push_back(who);
    };
  };
  Pass batch(fixture, Fixture::Disk(), {0, Priority::kBatch}, note('b'));
  Pass interactive(fixture, Fixture::Disk(), {0, Priority::kInteractive}, note('i'));
  first.Go();
  EXPECT_THAT(batch.Wait(), IsOk());
  EXPECT_THAT(interactive.Wait(), IsOk());
  EXPECT_EQ(order, (std::vector<char>{'i', 'b'}));
}

TEST_P(ResidencySharingTest, AFullQueueTellsWhenToTryAgain) {
  ResidencyManager::Options options;
  options.max_riders = 1;
  options.max_waiting = 0;
  Fixture fixture = MakeFixture(4, 0, false, options);
  HeldPass first(fixture, Fixture::Disk(), 0);
  first.AwaitHeld();
  absl::StatusOr<std::unique_ptr<Rider>> refused =
      fixture.manager->Join(fixture.model, Fixture::Disk(), {}, [](absl::Status) {});
  EXPECT_TRUE(absl::IsResourceExhausted(refused.status()));
  EXPECT_EQ(RetryAfterOf(refused.status()), absl::Seconds(1));
  first.Go();
  EXPECT_THAT(first.Wait(), IsOk());
}

TEST_P(ResidencySharingTest, AnInteractiveRequestTakesABatchOnesPlaceInAFullQueue) {
  ResidencyManager::Options options;
  options.max_riders = 1;
  options.max_waiting = 1;
  Fixture fixture = MakeFixture(4, 0, false, options);
  HeldPass first(fixture, Fixture::Disk(), 0);
  first.AwaitHeld();
  Pass batch(fixture, Fixture::Disk(), {0, Priority::kBatch});
  Pass interactive(fixture, Fixture::Disk());
  first.Go();
  EXPECT_THAT(batch.Wait(), StatusIs(absl::StatusCode::kResourceExhausted, "1 requests are waiting already"));
  EXPECT_THAT(interactive.Wait(), IsOk());
}

TEST_P(ResidencyBudgetTest, ShrinkingEvictsAtOnceAndGrowingLetsCopiesComeBack) {
  Fixture fixture = MakeFixture(kModules);
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  EXPECT_EQ(fixture.device_weights(), kModel);
  EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, 4 * kCopy), IsOk());
  fixture.Settle();
  EXPECT_EQ(fixture.device_weights(), 4 * kCopy);
  EXPECT_EQ(fixture.device.allocated_bytes(Memory::kDevice), 4 * kCopy);
  EXPECT_EQ(fixture.ledger.Usage(Memory::kDevice).budget_bytes, 4 * kCopy);
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  EXPECT_LE(fixture.device_weights(), 4 * kCopy);
  EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, kModel), IsOk());
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  EXPECT_EQ(fixture.device_weights(), kModel);
}

TEST_P(ResidencyBudgetTest, OfUnevenModulesAsManyGoAsTheBudgetLacksAndAllComeBack) {
  constexpr int64_t kLarge = 1 << 20, kLargestCopy = int64_t{40} << 12;
  Fixture fixture = MakeFixtureOf(FixtureModel::Uneven(), kLarge);
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  fixture.Settle();
  const int64_t all = fixture.device_weights();
  EXPECT_GE(all, fixture.model_of.stored_bytes() - fixture.model_of.unread_bytes());
  for (const int64_t budget : {all - 1, all - 50'001, all * 2 / 3 + 1}) {
    EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, budget), IsOk());
    fixture.Settle();
    EXPECT_LE(fixture.device_weights(), budget);
    EXPECT_GT(fixture.device_weights(), budget - kLargestCopy);
    EXPECT_LE(fixture.device.allocated_bytes(Memory::kDevice), budget);
    EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
    fixture.Settle();
    EXPECT_LE(fixture.ledger.Usage(Memory::kDevice).total_bytes(), budget);
    EXPECT_THAT(fixture.manager->Check(), IsOk());
  }
  EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, kLarge), IsOk());
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  EXPECT_EQ(fixture.device_weights(), all);
}

TEST_P(ResidencyBudgetTest, RunningRequestsKeepWhatTheyNeedUntilTheyEnd) {
  Fixture fixture = MakeFixture(kModules);
  HeldPass pass(fixture, Fixture::Resident(), 5, {3 * kCopy});
  pass.AwaitHeld();
  EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, kCopy), IsOk());
  EXPECT_EQ(fixture.ledger.Usage(Memory::kDevice).wanted_bytes, 4 * kCopy) << "activations and a window";
  EXPECT_EQ(fixture.manager->Snapshot().devices[0].memory.usage.wanted_bytes, kCopy);
  pass.Go();
  EXPECT_THAT(pass.Wait(), IsOk());
  fixture.Settle();
  EXPECT_LE(fixture.ledger.Usage(Memory::kDevice).total_bytes(), kCopy);
  EXPECT_EQ(fixture.ledger.Usage(Memory::kDevice).budget_bytes, kCopy);
}

TEST_P(ResidencyBudgetTest, ARequestThatNoLongerFitsIsToldWhileItWaits) {
  ResidencyManager::Options options;
  options.max_riders = 1;
  Fixture fixture = MakeFixture(6, 0, false, options);
  HeldPass first(fixture, Fixture::Disk(), 2);
  first.AwaitHeld();
  Pass second(fixture, Fixture::Disk(), {4 * kCopy});
  EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, 3 * kCopy), IsOk());
  first.Go();
  EXPECT_THAT(second.Wait(), StatusIs(absl::StatusCode::kFailedPrecondition, "the device budget is 12288 bytes"));
  EXPECT_THAT(first.Wait(), IsOk());
}

TEST_P(ResidencyBudgetTest, TheTransferSlotsAlwaysStay) {
  Fixture fixture = MakeFixture(4);
  EXPECT_THAT(fixture.manager->SetBudget(Memory::kHost, 1000),
              StatusIs(absl::StatusCode::kFailedPrecondition, "a budget of 1000 bytes"));
}

// One module is far wider than the others: until it is reached all stays, then what it is made from is in its way.
TEST_P(ResidencyBudgetTest, WhatIsResidentMakesWayForWhatIsMadeFromIt) {
  FixtureModel::Modules modules = FixtureModel::Even();
  modules[5] = {80'001, 0};
  ResidencyManager::Options options;
  options.ageing = absl::Hours(1);  // It does not have to wait for that.
  Fixture fixture = MakeFixtureOf(modules, 1 << 20, options);
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  fixture.Settle();
  const int64_t window = fixture.manager->WindowBytes(fixture.model, Fixture::HostOffloadInFloat32());
  ASSERT_GT(window, fixture.device_weights());
  EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, window), IsOk());
  EXPECT_THAT(Pass(fixture, Fixture::HostOffloadInFloat32()).Wait(), IsOk());
  fixture.Settle();
  EXPECT_THAT(fixture.manager->Check(), IsOk());
  EXPECT_LE(fixture.ledger.Usage(Memory::kDevice).total_bytes(), window);
}

TEST_P(ResidencyBudgetTest, AnyBudgetAtAnyModuleGivesTheSameValues) {
  for (ModuleIndex at = 0; at < kModules; ++at) {
    Fixture fixture = MakeFixture(kModules, 4);
    int64_t copies = 1;
    Pass pass(fixture, Fixture::DiskDynamic(std::nullopt), {}, [&](ModuleIndex module, Rider&) {
      if (module < at) return;
      EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, copies * kCopy), IsOk());
      copies = copies % kModules + 3;
    });
    EXPECT_THAT(pass.Wait(), IsOk());  // Every Pass compares the values it is given.
  }
}

TEST_P(ResidencyBudgetTest, AnyByteAtAnyModuleGivesTheSameValuesOfUnevenModules) {
  for (ModuleIndex at = 0; at < kModules; ++at) {
    std::mt19937 random(static_cast<uint32_t>(at));
    Fixture fixture = MakeFixtureOf(FixtureModel::Uneven(), 1 << 20);
    const int64_t window = fixture.manager->WindowBytes(fixture.model, Fixture::DiskDynamic(std::nullopt));
    Pass pass(fixture, Fixture::DiskDynamic(std::nullopt), {}, [&](ModuleIndex module, Rider&) {
      if (module < at) return;
      EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, window + static_cast<int64_t>(random() % 300'001)),
                  IsOk());
    });
    EXPECT_THAT(pass.Wait(), IsOk());
    fixture.Settle();
    EXPECT_THAT(fixture.manager->Check(), IsOk());
    EXPECT_LE(fixture.ledger.Usage(Memory::kDevice).total_bytes(), fixture.ledger.Usage(Memory::kDevice).wanted_bytes);
  }
}

}  // namespace
}  // namespace ditserve
