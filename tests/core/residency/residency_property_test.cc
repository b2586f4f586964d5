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
  switch (number % 6) {
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
    default:
      return Fixture::DiskDynamic(std::nullopt);
  }
}

// Riders of all profiles, priorities and join policies come, some are cancelled, and budgets change meanwhile. Every
// pass compares the values it is given.
void RunRandomTrace(uint32_t seed, std::unique_ptr<FakeDevice> device) {
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto pick = [&random](int below) { return static_cast<int>(random() % static_cast<uint32_t>(below)); };
  constexpr int64_t kLargestBudget = kModules + 4;
  Fixture fixture(std::move(device), kLargestBudget, pick(kModules + 1));
  std::vector<std::unique_ptr<Pass>> passes;
  for (int i = 0; i < 24; ++i) {
    const RideOptions options = {pick(3) * kCopy, pick(2) == 0 ? Priority::kInteractive : Priority::kBatch,
                                 static_cast<JoinPolicy>(pick(3))};
    const int cancelled_at = pick(4) == 0 ? pick(kModules) : kModules;
    passes.push_back(std::make_unique<Pass>(fixture, ProfileNumber(pick(6)), options,
                                            [cancelled_at](ModuleIndex module, Rider& rider) {
                                              if (module == cancelled_at) rider.Cancel(absl::CancelledError("enough"));
                                            }));
    if (pick(3) == 0) {
      EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, (3 + pick(kLargestBudget - 2)) * kCopy), IsOk());
    }
    if (pick(4) == 0) passes[static_cast<size_t>(pick(static_cast<int>(passes.size())))]->Wait().IgnoreError();
    const ResidencySnapshot snapshot = fixture.manager->Snapshot();
    EXPECT_LE(snapshot.device.total_bytes(), snapshot.device.budget_bytes);
    EXPECT_LE(snapshot.device.peak_bytes, kLargestBudget * kCopy);
  }
  for (const auto& pass : passes) {
    const absl::Status status = pass->Wait();
    EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
  }
  EXPECT_LE(fixture.device.most_allocated_bytes(Memory::kDevice), kLargestBudget * kCopy);
  EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, 0), IsOk());
  fixture.Settle();
  EXPECT_EQ(fixture.ledger.Usage(Memory::kDevice).total_bytes(), 0);
  EXPECT_EQ(fixture.device.allocated_bytes(Memory::kDevice), 0);
}

TEST(ResidencyPropertyTest, RandomTracesKeepBudgetsAndValues) {
  for (uint32_t seed = 0; seed < 40; ++seed) RunRandomTrace(seed, std::make_unique<FakeDevice>());
}

TEST(ResidencyPropertyTest, SoTheyDoWhenOperationsCompleteLateAndOutOfOrder) {
  for (uint32_t seed = 100; seed < 120; ++seed) {
    DoubleWorld world(seed);
    RunRandomTrace(seed, std::make_unique<DeviceDouble>(&world));
    EXPECT_THAT(world.TakeRaces(), ::testing::IsEmpty());
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
// change budgets.
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
        Pass pass(fixture, ProfileNumber(static_cast<int>(random() % 6)), options,
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
