#include "core/residency/residency_manager.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/testing/residency_fixture.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using Fixture = ResidencyFixture;
using Pass = ResidencyFixture::Pass;
constexpr int kModules = Fixture::kModules;
constexpr int64_t kCopy = Fixture::kCopyBytes;
constexpr int64_t kModel = kModules * kCopy;

TEST(ResidencyManagerTest, APassGivesTheCheckpointsValuesInOrder) {
  Fixture fixture(4);
  Pass pass(fixture, Fixture::Disk());
  EXPECT_THAT(pass.Wait(), IsOk());
  EXPECT_EQ(pass.account().modules_done, kModules);
  EXPECT_EQ(pass.account().disk_read_bytes, kModel);
  EXPECT_EQ(pass.account().device_copy_bytes, kModel);
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, APassMovesNoModuleThatItDoesWithout) {
  Fixture fixture(4);
  RideOptions options;
  options.skips = {0, 2, kModules - 1};
  Pass pass(fixture, Fixture::Disk(), options);
  EXPECT_THAT(pass.Wait(), IsOk());
  EXPECT_EQ(pass.account().modules_done, kModules - 3);
  EXPECT_EQ(pass.account().disk_read_bytes, kModel - 3 * kCopy);
  const absl::StatusOr<Forecast> forecast =
      fixture.manager->ForecastRide(fixture.model, Fixture::Disk(), options, /*riders=*/1, /*computing=*/{});
  ASSERT_THAT(forecast, IsOk());
  EXPECT_EQ(forecast->first.disk_read_bytes, kModel - 3 * kCopy);
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, LapsComputeInOneMemoryAndTheLaterOnesMoveWhatTheyTake) {
  ResidencyManager::Options manager_options;
  manager_options.max_riders = 1;  // The next lap takes no place.
  Fixture fixture(6, 0, false, manager_options);
  RideOptions options;
  options.activation_bytes = kCopy;
  {
    Pass pass(fixture, Fixture::Disk(), options, nullptr, /*laps=*/4, /*lap_skips=*/{1, 2});
    EXPECT_THAT(pass.Wait(), IsOk());
    EXPECT_EQ(pass.account().modules_done, kModules - 2) << "of the last one";
    EXPECT_EQ(fixture.manager->Snapshot().devices[0].modules_computed, 4 * kModules - 3 * 2);
    EXPECT_EQ(pass.moved_bytes(), 4 * kModel - 3 * 2 * kCopy);
  }
  fixture.Settle();
  EXPECT_EQ(fixture.ledger.Usage(Memory::kDevice).activations_bytes, 0);
  EXPECT_THAT(Pass(fixture, Fixture::Disk(), options).Wait(), IsOk()) << "the place is free again";
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, ALapThatEndsBeforeItsTurnIsToldByTheExecutor) {
  Fixture fixture(6);
  std::thread::id executor, told;
  std::unique_ptr<Rider> next;
  absl::Notification cancelled;
  absl::Status why;
  const auto join_and_cancel = [&](ModuleIndex module, Rider& rider) {
    if (module != 0) return;
    executor = std::this_thread::get_id();
    auto joined = rider.JoinLap({}, std::nullopt, [&](absl::Status status) {
      told = std::this_thread::get_id();
      why = std::move(status);
      cancelled.Notify();
    });
    ASSERT_THAT(joined, IsOk());
    next = *std::move(joined);
    next->Cancel(absl::UnavailableError("the device is lost"));
  };
  Pass pass(fixture, Fixture::Disk(), {}, join_and_cancel);
  EXPECT_THAT(pass.Wait(), IsOk());
  cancelled.WaitForNotification();
  EXPECT_THAT(why, StatusIs(absl::StatusCode::kUnavailable, "the device is lost"));
  EXPECT_EQ(told, executor);
  next.reset();
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, TheDiskProfileLeavesNothingBehind) {
  Fixture fixture(2 * kModules, kModules);
  EXPECT_THAT(Pass(fixture, Fixture::Disk()).Wait(), IsOk());
  fixture.Settle();
  EXPECT_EQ(fixture.device_weights(), 0);
  EXPECT_EQ(fixture.host_weights(), 0);
  fixture.ReleaseIdle();
  EXPECT_EQ(fixture.device.allocated_bytes(Memory::kDevice), 0);
  EXPECT_EQ(fixture.ledger.Usage(Memory::kDevice).total_bytes(), 0);
}

TEST(ResidencyManagerTest, MemoryIsFreshWhereNoCopyWasBefore) {
  Fixture fixture(2 * kModules, 0, /*in_host_memory=*/true);
  const auto fresh = [&] {
    int64_t bytes = 0;
    const TransferWork work = fixture.transfers->work();
    for (const auto& [step, times] : work.steps()) bytes += times.fresh.fresh_bytes;
    return bytes;
  };
  EXPECT_THAT(Pass(fixture, Fixture::Disk()).Wait(), IsOk());
  fixture.Settle();
  const int64_t window = fixture.device.allocated_bytes(Memory::kDevice);
  EXPECT_GT(window, 0);
  EXPECT_LT(window, kModel);
  EXPECT_EQ(fresh(), window);
  EXPECT_THAT(Pass(fixture, Fixture::Disk()).Wait(), IsOk());
  EXPECT_EQ(fresh(), window) << "another pass goes through what was there";
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  EXPECT_GE(fresh(), kModel - kCopy) << "what stays takes more, all but what was there";
}

TEST(ResidencyManagerTest, AResidentProfileReadsEachModuleOnce) {
  Fixture fixture(kModules);
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  EXPECT_EQ(fixture.device_weights(), kModel);
  Pass second(fixture, Fixture::Resident());
  EXPECT_THAT(second.Wait(), IsOk());
  EXPECT_EQ(second.account().disk_read_bytes, 0);
  EXPECT_EQ(second.account().device_copy_bytes, 0);
  fixture.ReleaseIdle();
  EXPECT_EQ(fixture.device_weights(), kModel) << "it rests on the device";
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, HostOffloadKeepsTheHostsCopiesAlone) {
  Fixture fixture(3, kModules);
  EXPECT_THAT(Pass(fixture, Fixture::HostOffload()).Wait(), IsOk());
  fixture.Settle();
  EXPECT_EQ(fixture.host_weights(), kModel);
  EXPECT_EQ(fixture.device_weights(), 0);
  Pass second(fixture, Fixture::HostOffload());
  EXPECT_THAT(second.Wait(), IsOk());
  EXPECT_EQ(second.account().disk_read_bytes, 0);
  EXPECT_EQ(second.account().device_copy_bytes, kModel);
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, HostOffloadStreamsWhatTheHostBudgetCannotHold) {
  Fixture fixture(3, kModules / 2);
  EXPECT_THAT(Pass(fixture, Fixture::HostOffload()).Wait(), IsOk());
  Pass second(fixture, Fixture::HostOffload());
  EXPECT_THAT(second.Wait(), IsOk());
  EXPECT_EQ(second.account().disk_read_bytes, kModel / 2);
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, AHostCopyInTheRightFormIsUsedInPlace) {
  Fixture fixture(2, kModules, /*in_host_memory=*/true);
  EXPECT_THAT(Pass(fixture, Fixture::HostOffload()).Wait(), IsOk());
  fixture.Settle();
  EXPECT_EQ(fixture.host_weights(), kModel);
  EXPECT_EQ(fixture.ledger.Usage(Memory::kDevice).peak_bytes, 0) << "counted once";
}

TEST(ResidencyManagerTest, AVramLimitIsFilledAndKeptToTheByte) {
  constexpr int64_t kKept = 5;
  Fixture fixture(2 * kModules);
  EXPECT_THAT(Pass(fixture, Fixture::DiskDynamic(kKept * kCopy)).Wait(), IsOk());
  fixture.Settle();
  EXPECT_LE(fixture.device_weights(), kKept * kCopy);
  EXPECT_GE(fixture.device_weights(), (kKept - 2) * kCopy);
  fixture.ReleaseIdle();
  EXPECT_EQ(fixture.device_weights(), 0) << "it rests on disk";
}

TEST(ResidencyManagerTest, SpareBudgetSavesItsShareOfTheTransfers) {
  constexpr int kSpare = 6;
  Fixture fixture(kSpare + 2);
  EXPECT_THAT(Pass(fixture, Fixture::DiskDynamic(std::nullopt)).Wait(), IsOk());
  Pass second(fixture, Fixture::DiskDynamic(std::nullopt));
  EXPECT_THAT(second.Wait(), IsOk());
  // What is in flight takes some of the room: how much depends on who is faster.
  EXPECT_LE(second.account().disk_read_bytes, (kModules - kSpare + 3) * kCopy);
  EXPECT_GE(second.account().disk_read_bytes, (kModules - kSpare - 2) * kCopy);
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, WhatIsNotKeptStreamsThroughAFewWindows) {
  Fixture fixture(2 * kModules);
  EXPECT_THAT(Pass(fixture, Fixture::Disk()).Wait(), IsOk());
  EXPECT_LE(fixture.ledger.Usage(Memory::kDevice).peak_bytes, 3 * kCopy);
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, WhatStaysIsSpreadOverTheSweep) {
  Fixture fixture(kModules / 2 + 3);
  EXPECT_THAT(Pass(fixture, Fixture::DiskDynamic(std::nullopt)).Wait(), IsOk());
  fixture.Settle();
  const auto tiers = fixture.manager->ModuleTiers(fixture.model);
  int resident = 0, gap = 0;
  for (const auto& of_module : tiers) {
    const bool on_device = of_module.front() == Tier::kDevice;
    resident += on_device;
    gap = on_device ? 0 : gap + 1;
    EXPECT_LE(gap, 2);
  }
  EXPECT_GE(resident, kModules / 2);
}

TEST(ResidencyManagerTest, TheSmallestWindowIsEnough) {
  Fixture fixture(1);
  for (const Profile& profile : {Fixture::Disk(), Fixture::HostOffload(), Fixture::Resident()}) {
    EXPECT_THAT(Pass(fixture, profile).Wait(), IsOk());
  }
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, ValuesPassThroughEveryStationsDtype) {
  // bfloat16 -> float8 -> bfloat16 is another value than bfloat16, so it is another copy.
  Profile fp8 =
      Fixture::MakeProfile({Tier::kHost, DType::kFloat8E4M3}, {Tier::kHost, DType::kFloat8E4M3}, Fixture::kOnDevice, 0);
  Fixture fixture(2 * kModules, kModules);
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  Pass pass(fixture, fp8);  // The fixture's values are float8 values, so the rounding leaves them as they are.
  EXPECT_THAT(pass.Wait(), IsOk());
  EXPECT_EQ(pass.account().disk_read_bytes, 0) << "they are made from the resident copies";
  EXPECT_GT(fixture.ledger.Usage(Memory::kDevice).peak_bytes, kModel) << "which hold other values";
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, RidersOfEqualPrecisionShareCopies) {
  Fixture fixture(2 * kModules);
  absl::Notification begin;
  Pass first(fixture, Fixture::Resident(), {}, [&](ModuleIndex module, Rider&) {
    if (module == 0) begin.WaitForNotification();  // Until both have joined.
  });
  Pass second(fixture, Fixture::DiskDynamic(std::nullopt));
  begin.Notify();
  EXPECT_THAT(first.Wait(), IsOk());
  EXPECT_THAT(second.Wait(), IsOk());
  EXPECT_EQ(first.account().disk_read_bytes + second.account().disk_read_bytes, kModel);
  EXPECT_EQ(first.account().most_riders, 2);
}

TEST(ResidencyManagerTest, ManyRidersOfManyProfilesFinishInASmallBudget) {
  Fixture fixture(3, 4);
  std::vector<std::unique_ptr<Pass>> passes;
  for (int i = 0; i < 16; ++i) {
    const Profile profile = i % 4 == 0   ? Fixture::Disk()
                            : i % 4 == 1 ? Fixture::HostOffload()
                            : i % 4 == 2 ? Fixture::Resident()
                                         : Fixture::DiskDynamic(2 * kCopy);
    passes.push_back(std::make_unique<Pass>(fixture, profile));
  }
  for (const auto& pass : passes) EXPECT_THAT(pass->Wait(), IsOk());
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, ActivationsPushCopiesOut) {
  Fixture fixture(kModules);
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  EXPECT_THAT(Pass(fixture, Fixture::Resident(), {8 * kCopy}).Wait(), IsOk());
  EXPECT_LE(fixture.device_weights(), (kModules - 8) * kCopy);
  EXPECT_EQ(fixture.ledger.Usage(Memory::kDevice).activations_bytes, 0);
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, ActivationsOfAnySizePushUnevenCopiesOut) {
  std::vector<std::unique_ptr<FakeDevice>> devices;
  devices.push_back(MakeSuiteDevice());
  Fixture fixture(FixtureModel::Uneven(), std::move(devices), {0, 1 << 20});
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  fixture.Settle();
  const int64_t all = fixture.device_weights();
  EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, all), IsOk());
  for (const int64_t activations : {1, 4097, 20'011, 100'003}) {
    int64_t most_weights = 0;
    Pass pass(fixture, Fixture::Resident(), {activations},
              [&](ModuleIndex, Rider&) { most_weights = std::max(most_weights, fixture.device_weights()); });
    EXPECT_THAT(pass.Wait(), IsOk()) << activations;
    EXPECT_LE(most_weights, all - activations);
    EXPECT_EQ(fixture.ledger.Usage(Memory::kDevice).activations_bytes, 0);
    EXPECT_THAT(fixture.manager->Check(), IsOk());
  }
}

TEST(ResidencyManagerTest, RefusesWhatCanNeverFit) {
  Fixture fixture(4);
  Pass pass(fixture, Fixture::Disk(), {3 * kCopy + 1});
  EXPECT_THAT(pass.Wait(), StatusIs(absl::StatusCode::kFailedPrecondition, "the device budget is 16384 bytes"));
  EXPECT_THAT(Pass(fixture, Fixture::Disk(), {3 * kCopy}).Wait(), IsOk());
}

TEST(ResidencyManagerTest, AdmitsInOrderOfArrivalWhenActivationsFit) {
  Fixture fixture(4);
  absl::Notification go;
  Pass first(fixture, Fixture::Disk(), {2 * kCopy}, [&](ModuleIndex module, Rider&) {
    if (module == 1) go.WaitForNotification();
  });
  Pass second(fixture, Fixture::Disk(), {2 * kCopy});
  EXPECT_EQ(fixture.manager->Snapshot().waiting(), 1);
  EXPECT_EQ(fixture.ledger.Usage(Memory::kDevice).activations_bytes, 2 * kCopy);
  go.Notify();
  EXPECT_THAT(first.Wait(), IsOk());
  EXPECT_THAT(second.Wait(), IsOk());
}

TEST(ResidencyManagerTest, WhoIsMoreUrgentComputesFirstEvenIfTheCopyIsThere) {
  Fixture fixture(kModules);
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  std::string order;
  absl::Notification joined, computed;
  std::unique_ptr<Rider> rider;
  absl::StatusOr<std::unique_ptr<Rider>> made =
      fixture.manager->Join(fixture.model, Fixture::Resident(), {0, Priority::kBatch}, [&](const absl::Status&) {
        joined.WaitForNotification();
        fixture.executor(0).Post([&] { order += 'i'; });
        rider->Acquire(0, [&](const absl::StatusOr<Lease>& lease) {
          EXPECT_THAT(lease.status(), IsOk());
          order += 'b';
          computed.Notify();
        });
      });
  ASSERT_THAT(made, IsOk());
  rider = *std::move(made);
  joined.Notify();
  computed.WaitForNotification();
  fixture.Settle();
  EXPECT_EQ(order, "ib");
  rider.reset();
}

TEST(ResidencyManagerTest, RefusesMoreThanMayWait) {
  ResidencyManager::Options options;
  options.max_riders = 1;
  options.max_waiting = 1;
  Fixture fixture(4, 0, false, options);
  absl::Notification go;
  Pass first(fixture, Fixture::Disk(), {}, [&](ModuleIndex, Rider&) { go.WaitForNotification(); });
  Pass second(fixture, Fixture::Disk());
  Pass third(fixture, Fixture::Disk());
  EXPECT_THAT(third.Wait(), StatusIs(absl::StatusCode::kResourceExhausted, "1 requests are waiting already"));
  go.Notify();
  EXPECT_THAT(second.Wait(), IsOk());
}

TEST(ResidencyManagerTest, AWaitingRiderCanBeCancelled) {
  ResidencyManager::Options options;
  options.max_riders = 1;
  Fixture fixture(4, 0, false, options);
  absl::Notification held, go;
  Pass first(fixture, Fixture::Disk(), {}, [&](ModuleIndex module, Rider&) {
    if (module > 0) return;
    held.Notify();
    go.WaitForNotification();
  });
  Pass second(fixture, Fixture::Disk());
  held.WaitForNotification();
  second.Cancel(absl::CancelledError("gone"));
  EXPECT_THAT(second.Wait(), StatusIs(absl::StatusCode::kCancelled, "gone")) << "while the first has the executor";
  go.Notify();
  EXPECT_THAT(first.Wait(), IsOk());
}

TEST(ResidencyManagerTest, CancellingAtAnyModuleReturnsEverything) {
  for (ModuleIndex at = 0; at < kModules; ++at) {
    Fixture fixture(3);
    Pass pass(fixture, Fixture::Disk(), {kCopy}, [&](ModuleIndex module, Rider& rider) {
      if (module == at) rider.Cancel(absl::CancelledError("enough"));
    });
    EXPECT_THAT(pass.Wait(), StatusIs(absl::StatusCode::kCancelled, "enough"));
    fixture.ReleaseIdle();
    EXPECT_EQ(fixture.ledger.Usage(Memory::kDevice).total_bytes(), 0) << "cancelled at " << at;
    EXPECT_EQ(fixture.device.allocated_bytes(Memory::kDevice), 0);
  }
}

TEST(ResidencyManagerTest, ARefusedAllocationIsTriedAgain) {
  for (int n = 1; n <= kModules; ++n) {
    Fixture fixture(2 * kModules);
    fixture.device.FailAllocation(n);
    EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk()) << "allocation " << n;
    fixture.Settle();
    fixture.CheckInvariants();
  }
}

TEST(ResidencyManagerTest, WhereTheSystemGivesLessThanTheBudgetRidersMakeDoWithIt) {
  constexpr int64_t kGiven = 4;
  Fixture fixture(2 * kModules);
  fixture.device.GiveAtMost(Memory::kDevice, kGiven * kCopy);
  std::vector<std::unique_ptr<Pass>> passes;
  for (int i = 0; i < 8; ++i) passes.push_back(std::make_unique<Pass>(fixture, Fixture::Resident()));
  for (const auto& pass : passes) EXPECT_THAT(pass->Wait(), IsOk());
  EXPECT_LE(fixture.device.most_allocated_bytes(Memory::kDevice), kGiven * kCopy);
  fixture.Settle();
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, WhereTheSystemGivesNothingTheRequestFailsAndTheNextOneNeedNot) {
  Fixture fixture(2 * kModules);
  fixture.device.GiveAtMost(Memory::kDevice, 0);
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(),
              StatusIs(absl::StatusCode::kResourceExhausted, "no memory left"));
  fixture.device.GiveAtMost(Memory::kDevice, kModel);
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  fixture.Settle();
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, ActivationsThatAreRefusedTakeWhatCopiesHadThatNobodyUses) {
  Fixture fixture(2 * kModules);
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  fixture.Settle();
  fixture.device.GiveAtMost(Memory::kDevice, fixture.device.allocated_bytes(Memory::kDevice));
  RideOptions options;
  options.activation_bytes = kCopy;
  EXPECT_THAT(Pass(fixture, Fixture::Resident(), options).Wait(), IsOk());
  fixture.Settle();
  fixture.CheckInvariants();
}

TEST(ResidencyManagerTest, WhoComesWhileMemoryIsRefusedIsServedOnceItIsNot) {
  ResidencyManager::Options options;
  options.idle_release = absl::InfiniteDuration();  // Nothing else is due.
  for (int i = 0; i < 4; ++i) {
    Fixture fixture(2 * kModules, 0, false, options);
    fixture.device.GiveAtMost(Memory::kDevice, 0);
    Pass(fixture, Fixture::Resident()).Wait().IgnoreError();
    fixture.device.GiveAtMost(Memory::kDevice, kModel);
    EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  }
}

TEST(ResidencyManagerTest, WhatIsDueIsDoneHoweverSlowTheMachine) {
  Fixture fixture(2 * kModules);
  fixture.device.GiveAtMost(Memory::kDevice, 0);
  fixture.clock.PassAtEachLook(ResidencyManager::Options().growth_pause + absl::Milliseconds(1));
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(),
              StatusIs(absl::StatusCode::kResourceExhausted, "no memory left"));
  fixture.clock.PassAtEachLook(absl::ZeroDuration());
}

TEST(ResidencyManagerTest, MemoryIsBookedUntilTheSystemHasItBack) {
  Fixture fixture(kModules, kModules);
  EXPECT_THAT(Pass(fixture, Fixture::Resident()).Wait(), IsOk());
  fixture.Settle();
  int looks = 0;
  fixture.device.BeforeEachTaking([&] {
    ++looks;
    EXPECT_GE(fixture.ledger.Usage(Memory::kDevice).total_bytes(), fixture.device.allocated_bytes(Memory::kDevice));
  });
  EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, 3 * kCopy), IsOk());
  EXPECT_GT(looks, 0);
  fixture.device.BeforeEachTaking(nullptr);
}

TEST(ResidencyManagerTest, AChangedCheckpointEndsThePassWithDataLoss) {
  Fixture fixture(2);
  Pass pass(fixture, Fixture::Disk(), {}, [&](ModuleIndex module, Rider&) {
    if (module == 1) std::filesystem::resize_file(fixture.path, 4096);
  });
  EXPECT_THAT(pass.Wait(), StatusIs(absl::StatusCode::kDataLoss, "model.safetensors"));
  fixture.ReleaseIdle();
  EXPECT_EQ(fixture.ledger.Usage(Memory::kDevice).total_bytes(), 0);
}

TEST(ResidencyManagerTest, AModelThatIsRemovedLeavesNothing) {
  Fixture fixture(kModules, kModules);
  absl::Notification go;
  Pass pass(fixture, Fixture::Resident(), {}, [&](ModuleIndex module, Rider&) {
    if (module == 1) go.WaitForNotification();
  });
  EXPECT_THAT(fixture.manager->RemoveModel(fixture.model),
              StatusIs(absl::StatusCode::kFailedPrecondition, "model m is in use"));
  go.Notify();
  EXPECT_THAT(pass.Wait(), IsOk());
  fixture.Settle();
  EXPECT_EQ(fixture.device_weights(), kModel);
  EXPECT_THAT(fixture.manager->RemoveModel(fixture.model), IsOk());
  EXPECT_EQ(fixture.device_weights(), 0);
  EXPECT_TRUE(fixture.manager->Snapshot().models.empty());
  EXPECT_TRUE(fixture.manager->Check().ok());
}

TEST(ResidencyManagerTest, AModelCanBeRemovedWhileAnotherIsMoved) {
  Fixture fixture(kModules);
  const ModelId other =
      fixture.manager->AddModel(fixture.model_of.Write(fixture.folder / "other.safetensors", fixture.files));
  absl::Notification reads, go;
  std::atomic<bool> first = true;
  fixture.files.BeforeEachRead([&](void*, size_t) {
    if (!first.exchange(false)) return;
    reads.Notify();
    go.WaitForNotification();
  });
  Pass pass(fixture, Fixture::Disk());
  reads.WaitForNotification();
  EXPECT_THAT(fixture.manager->RemoveModel(other), IsOk());
  go.Notify();
  EXPECT_THAT(pass.Wait(), IsOk());
  EXPECT_EQ(fixture.manager->Snapshot().models.size(), 1u);
}

TEST(ResidencyManagerTest, IdleCopiesGoBackToWhereTheirProfileRests) {
  Fixture fixture(kModules);
  EXPECT_THAT(Pass(fixture, Fixture::DiskDynamic(std::nullopt)).Wait(), IsOk());
  fixture.Settle();
  EXPECT_GT(fixture.device_weights(), 0) << "memory that waits is memory that works";
  fixture.manager->Tick();
  EXPECT_GT(fixture.device_weights(), 0);
  fixture.clock.Advance(ResidencyManager::Options().idle_release);
  fixture.manager->Tick();
  EXPECT_EQ(fixture.device_weights(), 0);
}

TEST(ResidencyManagerTest, TellsTheTiersOfEachModule) {
  Fixture fixture(3, kModules);
  EXPECT_THAT(Pass(fixture, Fixture::HostOffload()).Wait(), IsOk());
  fixture.Settle();
  const auto tiers = fixture.manager->ModuleTiers(fixture.model);
  ASSERT_EQ(tiers.size(), static_cast<size_t>(kModules));
  EXPECT_EQ(tiers[0], (std::vector<Tier>{Tier::kHost, Tier::kDisk}));
}

}  // namespace
}  // namespace ditserve
