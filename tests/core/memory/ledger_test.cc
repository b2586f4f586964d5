#include "core/memory/ledger.h"

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace ditserve {
namespace {

TEST(LedgerTest, RefusesWhatExceedsTheBudget) {
  Ledger ledger({50, 100});
  const auto first = ledger.TryReserve(Memory::kDevice, MemoryKind::kWeights, 60);
  ASSERT_TRUE(first.has_value());
  EXPECT_FALSE(ledger.TryReserve(Memory::kDevice, MemoryKind::kActivations, 41).has_value());
  EXPECT_TRUE(ledger.TryReserve(Memory::kDevice, MemoryKind::kActivations, 40).has_value());
  EXPECT_TRUE(ledger.TryReserve(Memory::kHost, MemoryKind::kStaging, 50).has_value());
}

TEST(LedgerTest, RefusesNegativeAndAbsurdSizes) {
  Ledger ledger({100, 100});
  EXPECT_FALSE(ledger.TryReserve(Memory::kDevice, MemoryKind::kWeights, -1).has_value());
  EXPECT_FALSE(ledger.TryReserve(Memory::kDevice, MemoryKind::kWeights, INT64_MAX).has_value());
}

TEST(LedgerTest, EachDevicesMemoryHasABudgetOfItsOwn) {
  Ledger ledger({10, 20, 30});
  const auto first = ledger.TryReserve(DeviceMemory(0), MemoryKind::kWeights, 20);
  const auto second = ledger.TryReserve(DeviceMemory(1), MemoryKind::kWeights, 30);
  EXPECT_TRUE(first.has_value() && second.has_value());
  EXPECT_FALSE(ledger.TryReserve(DeviceMemory(1), MemoryKind::kWeights, 1).has_value());
  ledger.SetBudget(DeviceMemory(1), 31);
  EXPECT_TRUE(ledger.TryReserve(DeviceMemory(1), MemoryKind::kWeights, 1).has_value());
  EXPECT_FALSE(ledger.TryReserve(DeviceMemory(0), MemoryKind::kWeights, 1).has_value());
  EXPECT_EQ(ledger.Usage(Memory::kHost).total_bytes(), 0);
}

TEST(LedgerTest, GivesBytesBackWhenAReservationEnds) {
  Ledger ledger({0, 100});
  { const auto held = ledger.TryReserve(Memory::kDevice, MemoryKind::kStaging, 100); }
  EXPECT_EQ(ledger.Usage(Memory::kDevice).total_bytes(), 0);
  EXPECT_EQ(ledger.Usage(Memory::kDevice).peak_bytes, 100);
}

TEST(LedgerTest, AMovedReservationIsGivenBackOnce) {
  Ledger ledger({0, 100});
  auto first = ledger.TryReserve(Memory::kDevice, MemoryKind::kWeights, 30);
  {
    Reservation second = *std::move(first);
    EXPECT_EQ(second.bytes(), 30);
    EXPECT_EQ(ledger.Usage(Memory::kDevice).weights_bytes, 30);
  }
  first.reset();
  EXPECT_EQ(ledger.Usage(Memory::kDevice).weights_bytes, 0);
}

TEST(LedgerTest, BooksUnderAnotherKindWithoutReservingAgain) {
  Ledger ledger({0, 100});
  auto held = ledger.TryReserve(Memory::kDevice, MemoryKind::kWeights, 100);
  held->SetKind(MemoryKind::kStaging);
  EXPECT_EQ(ledger.Usage(Memory::kDevice).weights_bytes, 0);
  EXPECT_EQ(ledger.Usage(Memory::kDevice).staging_bytes, 100);
}

TEST(LedgerTest, AReservationIsSplitAndMergedWithoutReservingAgain) {
  Ledger ledger({100, 100});
  std::optional<Reservation> whole = ledger.TryReserve(Memory::kDevice, MemoryKind::kStaging, 100);
  {
    Reservation part = whole->Split(30);
    part.SetKind(MemoryKind::kWeights);
    EXPECT_EQ(whole->bytes(), 70);
    EXPECT_EQ(ledger.Usage(Memory::kDevice).weights_bytes, 30);
    EXPECT_EQ(ledger.Usage(Memory::kDevice).staging_bytes, 70);
    part.SetKind(MemoryKind::kStaging);
    whole->Merge(std::move(part));
  }
  EXPECT_EQ(whole->bytes(), 100);
  EXPECT_EQ(ledger.Usage(Memory::kDevice).total_bytes(), 100);
  whole.reset();
  EXPECT_EQ(ledger.Usage(Memory::kDevice).total_bytes(), 0);
}

TEST(LedgerTest, AWatermarkRecordsTheLargestTotalSinceItsBeginning) {
  Ledger ledger({100, 100});
  { const auto before = ledger.TryReserve(Memory::kDevice, MemoryKind::kWeights, 90); }
  const int64_t mark = ledger.BeginWatermark(Memory::kDevice);
  { const auto during = ledger.TryReserve(Memory::kDevice, MemoryKind::kWeights, 40); }
  const auto other = ledger.TryReserve(Memory::kHost, MemoryKind::kWeights, 99);
  EXPECT_EQ(ledger.Watermark(mark), 40);
  ledger.EndWatermark(mark);
}

// A million operations on 16 threads: the budget is never exceeded, and a reservation that fits is never refused.
TEST(LedgerTest, HoldsUnderAMillionConcurrentOperations) {
  constexpr int64_t kBudget = 1000;
  constexpr int kThreads = 16;
  constexpr int kOperations = 1'000'000 / kThreads;
  Ledger ledger({kBudget, kBudget});
  std::vector<std::thread> threads;
  std::atomic<int> exceeded = 0;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      std::mt19937 random(i);
      std::vector<Reservation> held;
      for (int n = 0; n < kOperations; ++n) {
        const Memory memory = random() % 2 == 0 ? Memory::kDevice : Memory::kHost;
        if (random() % 2 == 0 && !held.empty()) {
          std::swap(held[random() % held.size()], held.back());
          held.pop_back();
        } else if (auto made = ledger.TryReserve(memory, static_cast<MemoryKind>(random() % 3), random() % 200)) {
          held.push_back(*std::move(made));
        }
        exceeded += ledger.Usage(memory).total_bytes() > kBudget;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(exceeded, 0);
  for (const Memory memory : {Memory::kDevice, Memory::kHost}) {
    EXPECT_EQ(ledger.Usage(memory).total_bytes(), 0);
    EXPECT_LE(ledger.Usage(memory).peak_bytes, kBudget);
    EXPECT_TRUE(ledger.TryReserve(memory, MemoryKind::kWeights, kBudget).has_value());
  }
}

}  // namespace
}  // namespace ditserve
