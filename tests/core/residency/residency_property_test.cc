// What holds for a ResidencyManager whatever happens: random traces, every fault, and how near it is to the optimum.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "tests/testing/device_double.h"
#include "tests/testing/residency_fixture.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using Fixture = ResidencyFixture;
using Pass = ResidencyFixture::Pass;
constexpr int kModules = Fixture::kModules;
constexpr int64_t kCopy = Fixture::kCopyBytes;

Profile ProfileNumber(int number) {
  switch (number) {
    case 0:
      return Fixture::Disk();
    case 1:
      return Fixture::HostOffload();
    case 2:
      return Fixture::Resident();
    case 3:
      return Fixture::DiskDynamic(3 * kCopy);
    case 4:
      return Fixture::HostOffloadInFloat16();
    case 5:
      return Fixture::DiskDynamic(std::nullopt);
    case 6:
      return Fixture::Fp8();
    default:
      return Fixture::HostOffloadInFloat32();
  }
}
constexpr int kProfiles = 8;
constexpr int kNarrowProfiles = 7;  // Without the one whose copies are twice as large.

// A model of uneven modules on one device or more, with budgets at any byte.
class RandomTrace {
 public:
  static constexpr int64_t kActivationBytes = 20'011;

  // On doubles in `world`, or, where that is null, on a fake.
  RandomTrace(uint32_t seed, DoubleWorld* world, int devices)
      : random_(seed),
        profiles_(Pick(2) == 0 ? kProfiles : kNarrowProfiles),
        fixture_(world != nullptr
                     ? std::make_unique<Fixture>(FixtureModel::Uneven(), *world, Budgets(devices))
                     : std::make_unique<Fixture>(FixtureModel::Uneven(), OneFake(Pick(4) == 0), nullptr, Budgets(1))),
        least_bytes_(2 * kActivationBytes) {
    int64_t widest = 0;
    for (int i = 0; i < profiles_; ++i) {
      widest = std::max(widest, fixture_->manager->WindowBytes(fixture_->model, ProfileNumber(i)));
    }
    least_bytes_ += widest;
  }

  // Riders of all profiles, priorities and join policies come, some are cancelled, and budgets change meanwhile. Every
  // pass compares the values that it is given.
  void Run() {
    for (int i = 0; i < 24; ++i) {
      Join();
      if (Pick(3) == 0) ChangeBudget();
      if (Pick(4) == 0) passes_[static_cast<size_t>(Pick(static_cast<int>(passes_.size())))]->Wait().IgnoreError();
      for (size_t m = 0; m <= fixture_->devices.size(); ++m) {
        const MemoryUsage usage = fixture_->ledger.Usage(static_cast<Memory>(m));
        EXPECT_LE(usage.total_bytes(), usage.budget_bytes);
      }
    }
    for (const auto& pass : passes_) {
      const absl::Status status = pass->Wait();
      EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
    }
    CheckEnd();
  }

 private:
  static constexpr int64_t kLargestBytes = 600'001;

  static std::vector<std::unique_ptr<FakeDevice>> OneFake(bool in_host_memory) {
    std::vector<std::unique_ptr<FakeDevice>> devices;
    devices.push_back(std::make_unique<FakeDevice>(in_host_memory));
    return devices;
  }
  int Pick(int below) { return static_cast<int>(random_() % static_cast<uint32_t>(below)); }
  std::vector<int64_t> Budgets(int devices) {
    std::vector<int64_t> budgets(static_cast<size_t>(1 + devices), kLargestBytes);
    budgets.front() = Pick(kLargestBytes);
    return budgets;
  }

  void Join() {
    const RideOptions options = {Pick(3) * kActivationBytes, Pick(2) == 0 ? Priority::kInteractive : Priority::kBatch,
                                 static_cast<JoinPolicy>(Pick(3)), Pick(static_cast<int>(fixture_->devices.size()))};
    const int cancelled_at = Pick(4) == 0 ? Pick(kModules) : kModules;
    passes_.push_back(std::make_unique<Pass>(*fixture_, ProfileNumber(Pick(profiles_)), options,
                                             [cancelled_at](ModuleIndex module, Rider& rider) {
                                               if (module == cancelled_at) rider.Cancel(absl::CancelledError("enough"));
                                             }));
  }
  void ChangeBudget() {
    const Memory memory = DeviceMemory(Pick(static_cast<int>(fixture_->devices.size())));
    const int64_t bytes = least_bytes_ + Pick(static_cast<int>(kLargestBytes - least_bytes_));
    EXPECT_THAT(fixture_->manager->SetBudget(memory, bytes), IsOk());
  }

  void CheckEnd() {
    fixture_->Settle();
    EXPECT_THAT(fixture_->manager->Check(), IsOk());
    for (size_t i = 0; i < fixture_->devices.size(); ++i) {
      const Memory memory = DeviceMemory(static_cast<int>(i));
      EXPECT_LE(fixture_->devices[i]->most_allocated_bytes(memory), kLargestBytes);
      EXPECT_THAT(fixture_->manager->SetBudget(memory, 0), IsOk());
      fixture_->Settle();
      EXPECT_EQ(fixture_->ledger.Usage(memory).total_bytes(), 0);
      EXPECT_EQ(fixture_->devices[i]->allocated_bytes(memory), 0);
    }
  }

  std::mt19937 random_;
  const int profiles_;
  const std::unique_ptr<Fixture> fixture_;
  int64_t least_bytes_;
  std::vector<std::unique_ptr<Pass>> passes_;
};

TEST(ResidencyPropertyTest, RandomTracesKeepBudgetsAndValues) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    RandomTrace(seed, nullptr, 1).Run();
  }
}

TEST(ResidencyPropertyTest, SoTheyDoWhenOperationsCompleteLateAndOutOfOrder) {
  for (uint32_t seed = 100; seed < 130; ++seed) {
    SCOPED_TRACE(seed);
    DoubleWorld world(seed);
    RandomTrace(seed, &world, 1).Run();
    ASSERT_THAT(world.TakeRaces(), ::testing::IsEmpty());
  }
}

TEST(ResidencyPropertyTest, SoTheyDoOnTwoDevicesBesideEachOther) {
  for (uint32_t seed = 200; seed < 230; ++seed) {
    SCOPED_TRACE(seed);
    DoubleWorld world(seed);
    RandomTrace(seed, &world, 2).Run();
    ASSERT_THAT(world.TakeRaces(), ::testing::IsEmpty());
  }
}

TEST(ResidencyPropertyTest, AnyFailedCopyEndsThePassCleanly) {
  for (int n = 1; n <= kModules; ++n) {  // Of host to device: what is read is read where it stays.
    SCOPED_TRACE(n);
    Fixture fixture(4, kModules);
    fixture.device.FailCopy(n);
    EXPECT_THAT(Pass(fixture, Fixture::HostOffload()).Wait(),
                StatusIs(absl::StatusCode::kUnavailable, "the fake device's link failed"));
    fixture.device.FailCopy(0);
    EXPECT_THAT(Pass(fixture, Fixture::Disk()).Wait(), IsOk());
    fixture.CheckInvariants();
  }
}

TEST(ResidencyPropertyTest, AnyFailedReadEndsThePassCleanly) {
  constexpr int kTries = 3;
  for (int n = 0; n < kModules; ++n) {
    SCOPED_TRACE(n);
    Fixture fixture(4);
    fixture.files.FailReadsAfter(n, kTries * Fixture::kThreads, EIO);
    EXPECT_THAT(Pass(fixture, Fixture::Disk()).Wait(),
                StatusIs(absl::StatusCode::kUnavailable, "model.safetensors: Input/output error"));
    fixture.Settle();
    fixture.files.FailReads(0, 0);
    EXPECT_EQ(fixture.device_weights(), 0);
    EXPECT_THAT(Pass(fixture, Fixture::Disk()).Wait(), IsOk());
    fixture.CheckInvariants();
  }
}

// A million acquisitions and releases of 16 threads (a tenth where each is twenty times as slow), which also cancel and
// change budgets. Under AddressSanitizer it takes five times the processor's time of a release build, and ends: half of
// that is the policy's own code, instrumented, a quarter the sanitizer's allocator and stacks, a fifth the kernel's,
// which switches threads (half of it in a release build). Nothing spins, so it has its whole size there.
#if defined(__SANITIZE_THREAD__)
constexpr int kOperations = 100'000;
#else
constexpr int kOperations = 1'000'000;
#endif
TEST(ResidencyPropertyTest, SixteenThreadsLoseNothing) {
  constexpr int kThreads = 16;
  constexpr int kPassesEach = kOperations / (2 * kModules * kThreads);
  constexpr int64_t kLargestBudget = kModules + 4;
  Fixture fixture(kLargestBudget, kModules / 2);
  std::atomic<int> exceeded = 0;
  std::vector<std::thread> threads;
  for (uint32_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937 random(thread);
      for (int i = 0; i < kPassesEach; ++i) {
        const RideOptions options = {static_cast<int64_t>(random() % 2) * kCopy, static_cast<Priority>(random() % 2),
                                     static_cast<JoinPolicy>(random() % 3)};
        const int cancelled_at = random() % 8 == 0 ? static_cast<int>(random() % kModules) : kModules;
        Pass pass(fixture, ProfileNumber(static_cast<int>(random() % kNarrowProfiles)), options,
                  [cancelled_at](ModuleIndex module, Rider& rider) {
                    if (module == cancelled_at) rider.Cancel(absl::CancelledError("enough"));
                  });
        if (random() % 16 == 0) {
          const int64_t copies = 3 + static_cast<int64_t>(random() % (kLargestBudget - 2));
          EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, copies * kCopy), IsOk());
        }
        const absl::Status status = pass.Wait();
        EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
        const ResidencySnapshot snapshot = fixture.manager->Snapshot();
        exceeded += snapshot.device.total_bytes() > snapshot.device.budget_bytes ||
                    snapshot.host.total_bytes() > snapshot.host.budget_bytes;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(exceeded, 0);
  EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, 0), IsOk());
  fixture.Settle();
  EXPECT_EQ(fixture.ledger.Usage(Memory::kDevice).total_bytes(), 0);
  EXPECT_EQ(fixture.device.allocated_bytes(Memory::kDevice), 0);
  EXPECT_EQ(fixture.device.allocated_bytes(Memory::kHost), fixture.ledger.Usage(Memory::kHost).total_bytes());
}

// Loads that no policy can save on this sequence of modules with room for `capacity` copies: Belady's MIN, which knows
// the future.
int LeastLoads(const std::vector<int>& sequence, size_t capacity) {
  std::vector<int> held;
  int loads = 0;
  for (size_t i = 0; i < sequence.size(); ++i) {
    if (std::find(held.begin(), held.end(), sequence[i]) != held.end()) continue;
    ++loads;
    if (held.size() == capacity) {
      const auto next_use = [&](int module) {
        return std::find(sequence.begin() + static_cast<std::ptrdiff_t>(i), sequence.end(), module);
      };
      held.erase(std::max_element(held.begin(), held.end(), [&](int a, int b) { return next_use(a) < next_use(b); }));
    }
    held.push_back(sequence[i]);
  }
  return loads;
}

TEST(ResidencyPropertyTest, LoadsWhatTheOptimumLoadsButForWhatIsInFlight) {
  constexpr int kSweeps = 4;
  constexpr int kInFlight = 5;  // Three loads, one that is computed with, and one that was and has yet to give way.
  std::vector<int> sequence;
  for (int i = 0; i < kSweeps * kModules; ++i) sequence.push_back(i % kModules);
  for (int capacity = kInFlight + 1; capacity <= kModules; ++capacity) {
    Fixture fixture(capacity);
    for (int i = 0; i < kSweeps; ++i) {
      EXPECT_THAT(Pass(fixture, Fixture::DiskDynamic(std::nullopt)).Wait(), IsOk());
      fixture.Settle();
    }
    const auto loads = static_cast<int>(fixture.manager->Snapshot().transfers[0].bytes / kCopy);
    EXPECT_GE(loads, LeastLoads(sequence, static_cast<size_t>(capacity))) << "room for " << capacity;
    EXPECT_LE(loads, LeastLoads(sequence, static_cast<size_t>(capacity - kInFlight))) << "room for " << capacity;
  }
}

}  // namespace
}  // namespace ditserve
