// What holds for a ResidencyManager whatever happens: random traces, every fault, and how near it is to the optimum.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "tests/testing/random_trace.h"
#include "tests/testing/residency_fixture.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/suite_devices.h"

namespace ditserve {
namespace {

using Fixture = ResidencyFixture;
using Pass = ResidencyFixture::Pass;
constexpr int kModules = Fixture::kModules;
constexpr int64_t kCopy = Fixture::kCopyBytes;

TEST(ResidencyPropertyTest, RandomTracesKeepBudgetsAndValues) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    RandomTrace(seed).Run();
  }
}

TEST(ResidencyPropertyTest, SoTheyDoWhenOperationsCompleteLateAndOutOfOrder) {
  for (uint32_t seed = 100; seed < 130; ++seed) {
    SCOPED_TRACE(seed);
    LateDevices late(seed);
    RandomTrace(seed, late, 1).Run();
    ASSERT_THAT(late.TakeRaces(), ::testing::IsEmpty());
  }
}

TEST(ResidencyPropertyTest, SoTheyDoOnTwoDevicesBesideEachOther) {
  for (uint32_t seed = 200; seed < 230; ++seed) {
    SCOPED_TRACE(seed);
    LateDevices late(seed);
    RandomTrace(seed, late, 2).Run();
    ASSERT_THAT(late.TakeRaces(), ::testing::IsEmpty());
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
// change budgets, to any byte. Copies differ in size, so that one needs what several others leave. Under
// AddressSanitizer it takes five times the processor's time of a release build, and ends: half of that is the policy's
// own code, instrumented, a quarter the sanitizer's allocator and stacks, a fifth the kernel's, which switches threads
// (half of it in a release build). Nothing spins, so it has its whole size there.
#if defined(__SANITIZE_THREAD__)
constexpr int kOperations = 100'000;
#else
constexpr int kOperations = 1'000'000;
#endif
TEST(ResidencyPropertyTest, SixteenThreadsLoseNothing) {
  constexpr int kThreads = 16;
  constexpr int kPassesEach = kOperations / (2 * kModules * kThreads);
  constexpr int64_t kActivationBytes = 20'011, kLargestBudget = 450'001, kHostBudget = 186'003;
  std::vector<std::unique_ptr<FakeDevice>> device;
  device.push_back(MakeSuiteDevice());
  Fixture fixture(FixtureModel::Uneven(), std::move(device), {kHostBudget, kLargestBudget});
  const int64_t least = RandomTrace::LeastBytes(fixture, RandomTrace::kNarrowProfiles, 2 * kActivationBytes);
  ASSERT_LT(least, kLargestBudget);
  std::atomic<int> exceeded = 0;
  std::vector<std::thread> threads;
  for (uint32_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937 random(thread);
      for (int i = 0; i < kPassesEach; ++i) {
        const RideOptions options = {static_cast<int64_t>(random() % 3) * kActivationBytes,
                                     static_cast<Priority>(random() % 2), static_cast<JoinPolicy>(random() % 3)};
        const int cancelled_at = random() % 8 == 0 ? static_cast<int>(random() % kModules) : kModules;
        Pass pass(fixture, RandomTrace::ProfileNumber(static_cast<int>(random() % RandomTrace::kNarrowProfiles)),
                  options, [cancelled_at](ModuleIndex module, Rider& rider) {
                    if (module == cancelled_at) rider.Cancel(absl::CancelledError("enough"));
                  });
        if (random() % 16 == 0) {
          const int64_t budget = least + static_cast<int64_t>(random()) % (kLargestBudget - least + 1);
          EXPECT_THAT(fixture.manager->SetBudget(Memory::kDevice, budget), IsOk());
        }
        const absl::Status status = pass.Wait();
        EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
        const ResidencySnapshot snapshot = fixture.manager->Snapshot();
        for (const MemoryInfo& memory : {snapshot.devices[0].memory, snapshot.host}) {
          exceeded += memory.usage.total_bytes() > memory.usage.budget_bytes;
        }
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
