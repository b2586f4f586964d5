#include "core/memory/arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "tests/core/memory/watched_device.h"
#include "tests/testing/fake_device.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr int64_t kPage = kHostPageBytes;

// Passes when it is waited for.
class FakeEvent final : public Event {
 public:
  bool Done() override { return done_; }
  absl::Status Wait() override {
    done_ = true;
    return status_;
  }
  void Fail(absl::Status status) { status_ = std::move(status); }

 private:
  bool done_ = false;
  absl::Status status_;
};

class ArenaTest : public ::testing::Test {
 protected:
  static std::unique_ptr<Arena> MakeArena(Device* device, Memory memory = Memory::kDevice, int64_t pages = 1000) {
    absl::StatusOr<std::unique_ptr<Arena>> arena = Arena::Make(device, memory, pages * kPage);
    EXPECT_THAT(arena, IsOk());
    return *std::move(arena);
  }
  Buffer TakePrepared(int64_t pages) {
    Buffer part = arena_->Take(pages * kPage);
    EXPECT_THAT(part.Prepare(), IsOk());
    return part;
  }
  int64_t given() const { return device_.allocated_bytes(Memory::kDevice); }

  WatchedDevice device_;
  std::unique_ptr<Arena> arena_ = MakeArena(&device_);
};

TEST_F(ArenaTest, APartHasWholeGranulesAndMemoryOnceItIsPrepared) {
  Buffer part = arena_->Take(kPage + 1);
  EXPECT_EQ(part.size_bytes(), 2 * kPage);
  EXPECT_EQ(part.memory(), Memory::kDevice);
  EXPECT_EQ(arena_->committed_bytes(), 2 * kPage);
  EXPECT_EQ(given(), 0);
  EXPECT_THAT(part.Prepare(), IsOk());
  EXPECT_EQ(given(), 2 * kPage);
  EXPECT_THAT(part.Prepare(), IsOk()) << "once more";
}

TEST_F(ArenaTest, APartOfNoBytesTakesNothing) {
  Buffer part = arena_->Take(0);
  EXPECT_THAT(part.Prepare(), IsOk());
  EXPECT_EQ(part.size_bytes(), 0);
  EXPECT_EQ(arena_->committed_bytes(), 0);
}

TEST_F(ArenaTest, WhatAPartLeavesTheNextOneGetsWithItsMemory) {
  const std::byte* const first = TakePrepared(3).data();
  EXPECT_EQ(arena_->cached_bytes(), 3 * kPage);
  Buffer part = TakePrepared(2);
  EXPECT_EQ(part.data(), first);
  EXPECT_EQ(arena_->cached_bytes(), kPage);
  EXPECT_EQ(given(), 3 * kPage);
}

TEST_F(ArenaTest, TheSmallestHoleThatIsEnoughIsTaken) {
  Buffer large = TakePrepared(5), between = TakePrepared(1), small = TakePrepared(3), after = TakePrepared(1);
  const std::byte* const expected = small.data();
  large = Buffer();
  small = Buffer();
  EXPECT_EQ(arena_->Take(2 * kPage).data(), expected);
}

TEST_F(ArenaTest, WhereNoHoleIsEnoughHolesGiveTheirMemoryToFreshAddresses) {
  Buffer first = TakePrepared(2), between = TakePrepared(1), second = TakePrepared(3), after = TakePrepared(1);
  *first.data() = std::byte{1};
  *second.data() = std::byte{2};
  first = Buffer();
  second = Buffer();
  device_.Allow(given());
  Buffer part = arena_->Take(4 * kPage);
  EXPECT_EQ(arena_->cached_bytes(), kPage) << "just as much as is needed";
  EXPECT_EQ(arena_->committed_bytes(), 7 * kPage);
  EXPECT_EQ(given(), 7 * kPage);
  EXPECT_THAT(part.Prepare(), IsOk());
  EXPECT_EQ(given(), 7 * kPage);
  EXPECT_EQ(part.data()[0], std::byte{1}) << "the memory itself";
  EXPECT_EQ(part.data()[2 * kPage], std::byte{2});
}

class HugePagesTest : public ::testing::Test {
 protected:
  // Notes what is moved to where a huge page does not begin as it did.
  class MovedDevice final : public WatchedDevice {
   public:
    absl::Status Move(Memory memory, std::byte* from, std::byte* to, int64_t bytes) override {
      (IsInStep(from, to) ? whole : broken) += bytes;
      return WatchedDevice::Move(memory, from, to, bytes);
    }
    int64_t whole = 0, broken = 0;

   private:
    static bool IsInStep(const std::byte* from, const std::byte* to) { return (from - to) % kHuge == 0; }
  };

  Buffer TakePrepared(int64_t bytes) {
    Buffer part = arena_->Take(bytes);
    EXPECT_THAT(part.Prepare(), IsOk());
    return part;
  }

  static constexpr int64_t kHuge = Arena::kHugePageBytes;
  MovedDevice device_;
  std::unique_ptr<Arena> arena_ = *Arena::Make(&device_, Memory::kDevice, 64 * kHuge);
};

TEST_F(HugePagesTest, ALargePartBeginsWithOne) {
  const Buffer small = TakePrepared(kPage), large = TakePrepared(kHuge), next = TakePrepared(kPage);
  EXPECT_EQ((large.data() - small.data()) % kHuge, 0);
  EXPECT_EQ(next.data() - small.data(), kPage) << "the addresses before it are used";
}

TEST_F(HugePagesTest, TheyAreMovedWholeAndWhatIsBetweenThemIsFresh) {
  Buffer first = TakePrepared(2 * kHuge + kPage), second = TakePrepared(kHuge + 3 * kPage),
         between = TakePrepared(kPage);
  first = Buffer();
  second = Buffer();
  device_.Allow(4 * kHuge + kPage);
  const Buffer part = TakePrepared(4 * kHuge);
  EXPECT_EQ(device_.whole, 3 * kHuge);
  EXPECT_EQ(device_.broken, 0);
  EXPECT_EQ(arena_->committed_bytes(), 4 * kHuge + kPage);
  EXPECT_EQ(device_.allocated_bytes(Memory::kDevice), 4 * kHuge + kPage);
}

TEST_F(HugePagesTest, SmallPartsTakeWhatIsBetweenThem) {
  Buffer first = TakePrepared(2 * kPage), between = TakePrepared(kPage), second = TakePrepared(2 * kPage),
         after = TakePrepared(kPage);
  first = Buffer();
  second = Buffer();
  const Buffer part = TakePrepared(4 * kPage);
  EXPECT_EQ(device_.whole + device_.broken, 4 * kPage);
}

TEST_F(ArenaTest, MemoryThatCannotBeMovedIsGoneWithTheHolesThatHadIt) {
  Buffer first = TakePrepared(2), between = TakePrepared(1), second = TakePrepared(3), after = TakePrepared(1);
  first = Buffer();
  second = Buffer();
  Buffer part = arena_->Take(5 * kPage);
  device_.FailAllocation(2);
  EXPECT_THAT(part.Prepare(), StatusIs(absl::StatusCode::kResourceExhausted, "the fake device has no memory left"));
  EXPECT_EQ(part.lost_bytes(), 5 * kPage);
  EXPECT_EQ(given(), 2 * kPage);
  EXPECT_THAT(part.Prepare(), IsOk());
  EXPECT_EQ(given(), 7 * kPage);
}

TEST_F(ArenaTest, HolesGiveNoMoreThanTheyAreAskedFor) {
  { const Buffer hole = TakePrepared(3); }
  Buffer part = arena_->Take(2 * kPage, /*most_reused_bytes=*/kPage);
  EXPECT_EQ(arena_->cached_bytes(), 2 * kPage);
  EXPECT_EQ(arena_->committed_bytes(), 4 * kPage);
  EXPECT_THAT(part.Prepare(), IsOk());
  EXPECT_EQ(given(), 4 * kPage);
}

TEST_F(ArenaTest, APartThatWasNeverPreparedLeavesTheHolesThatItWouldHaveDisplaced) {
  { const Buffer hole = TakePrepared(2); }
  { const Buffer part = arena_->Take(5 * kPage); }
  EXPECT_EQ(arena_->cached_bytes(), 2 * kPage);
  EXPECT_EQ(arena_->committed_bytes(), 2 * kPage);
  EXPECT_EQ(given(), 2 * kPage);
}

TEST_F(ArenaTest, RefusedMemoryIsToldByPrepareAndCanBeAskedForAgain) {
  { const Buffer hole = TakePrepared(2); }
  Buffer part = arena_->Take(5 * kPage);
  device_.FailAllocation(1);
  EXPECT_THAT(part.Prepare(), StatusIs(absl::StatusCode::kResourceExhausted, "the fake device has no memory left"));
  EXPECT_EQ(given(), 0) << "the hole's memory is gone";
  EXPECT_THAT(part.Prepare(), IsOk());
  EXPECT_EQ(given(), 5 * kPage);
}

TEST_F(ArenaTest, ARefusedPartThatIsGivenBackLeavesNothing) {
  device_.FailAllocation(1);
  EXPECT_THAT(arena_->Take(5 * kPage).Prepare(),
              StatusIs(absl::StatusCode::kResourceExhausted, "the fake device has no memory left"));
  EXPECT_EQ(arena_->committed_bytes(), 0);
}

TEST_F(ArenaTest, RunningOutOfAddressesIsToldByPrepare) {
  Buffer most = TakePrepared(900);
  EXPECT_THAT(arena_->Take(200 * kPage).Prepare(),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       "819200 bytes find no addresses beside each other among the 4096000 of their memory"));
  EXPECT_EQ(arena_->committed_bytes(), 900 * kPage);
}

TEST_F(ArenaTest, AddressesAreUsedAgain) {
  for (int i = 0; i < 100; ++i) {
    { const Buffer part = TakePrepared(900); }
    arena_->Trim(900 * kPage);
  }
  EXPECT_EQ(given(), 0);
}

TEST_F(ArenaTest, AddressesBesideEachOtherAreUsedTogether) {
  for (const bool first_goes_first : {true, false}) {
    Buffer first = TakePrepared(400), second = TakePrepared(400);
    (first_goes_first ? first : second) = Buffer();
    arena_->Trim(400 * kPage).Free();
    (first_goes_first ? second : first) = Buffer();
    arena_->Trim(400 * kPage).Free();
    EXPECT_THAT(arena_->Take(900 * kPage).Prepare(), IsOk());
    arena_->Trim(900 * kPage).Free();
  }
}

TEST_F(ArenaTest, GarbageIsHeldUntilItIsFreed) {
  { const Buffer hole = TakePrepared(5); }
  Garbage garbage = arena_->Trim(2 * kPage);
  EXPECT_EQ(garbage.size_bytes(), 2 * kPage);
  EXPECT_EQ(arena_->cached_bytes(), 3 * kPage);
  EXPECT_EQ(arena_->committed_bytes(), 5 * kPage);
  EXPECT_EQ(given(), 5 * kPage);
  garbage.Free();
  EXPECT_EQ(arena_->committed_bytes(), 3 * kPage);
  EXPECT_EQ(given(), 3 * kPage);
}

TEST_F(ArenaTest, GarbageIsReadyWhenNothingReadsIt) {
  const auto reads = std::make_shared<FakeEvent>();
  TakePrepared(1).InUseUntil(reads);
  Garbage garbage = arena_->Trim(kPage);
  EXPECT_FALSE(garbage.Ready());
  garbage.Free();
  EXPECT_TRUE(reads->Done()) << "it was waited for";
  EXPECT_TRUE(garbage.Ready());
}

TEST_F(ArenaTest, WriterOnTheDeviceComesAfterWhatIsUnderWayThere) {
  const auto written = std::make_shared<FakeEvent>(), reads = std::make_shared<FakeEvent>();
  {
    Buffer before = TakePrepared(1);
    before.WrittenOnce(written);
    before.InUseUntil(reads);
  }
  Buffer part = TakePrepared(1);
  EXPECT_THAT(part.in_use_until(), UnorderedElementsAre(written, reads));
  EXPECT_FALSE(written->Done() || reads->Done()) << "nobody waits here";
  part.WrittenOnce(nullptr);
  EXPECT_THAT(part.in_use_until(), IsEmpty()) << "who writes next comes after the write";
}

TEST_F(ArenaTest, WriterOnTheHostWaits) {
  const std::unique_ptr<Arena> host = MakeArena(&device_, Memory::kHost);
  const auto reads = std::make_shared<FakeEvent>();
  {
    Buffer before = host->Take(kPage);
    EXPECT_THAT(before.Prepare(), IsOk());
    before.InUseUntil(reads);
  }
  Buffer part = host->Take(kPage);
  EXPECT_FALSE(reads->Done());
  EXPECT_THAT(part.Prepare(), IsOk());
  EXPECT_TRUE(reads->Done());
  EXPECT_THAT(part.in_use_until(), IsEmpty());
}

TEST_F(ArenaTest, NeighboursThatWaitForDifferentEventsAreTakenTogetherAndKeptApart) {
  for (const bool first_goes_first : {true, false}) {
    const auto first_reads = std::make_shared<FakeEvent>(), second_reads = std::make_shared<FakeEvent>();
    Buffer first = TakePrepared(2), second = TakePrepared(2);
    first.WrittenOnce(nullptr);
    second.WrittenOnce(nullptr);
    first.InUseUntil(first_reads);
    second.InUseUntil(second_reads);
    (first_goes_first ? first : second) = Buffer();
    (first_goes_first ? second : first) = Buffer();
    Buffer one = arena_->Take(kPage), rest = arena_->Take(3 * kPage);
    EXPECT_THAT(one.in_use_until(), ElementsAre(first_reads)) << "not the neighbour's";
    EXPECT_THAT(rest.in_use_until(), ElementsAre(first_reads, second_reads));
    EXPECT_EQ(rest.data(), one.data() + kPage);
    one.InUseUntil(nullptr);
    rest.InUseUntil(nullptr);
    one = Buffer();
    rest = Buffer();
    EXPECT_EQ(arena_->cached_bytes(), 4 * kPage);
  }
}

TEST_F(ArenaTest, NeighboursThatWaitForTheSameAreOneHole) {
  for (const bool first_goes_first : {true, false}) {
    Buffer far = TakePrepared(2), between = TakePrepared(1), first = TakePrepared(1), second = TakePrepared(1);
    const std::byte* const expected = first.data();
    far = Buffer();
    (first_goes_first ? first : second) = Buffer();
    (first_goes_first ? second : first) = Buffer();
    arena_->Trim(2 * kPage).Free();  // Of two as large the first: were they three, the smallest.
    EXPECT_EQ(arena_->Take(2 * kPage).data(), expected);
    between = Buffer();
    arena_->Trim(5 * kPage).Free();
  }
}

TEST_F(ArenaTest, MemoryIsTakenFromDisplacedHolesOnceNothingReadsThem) {
  const auto reads = std::make_shared<FakeEvent>();
  TakePrepared(1).InUseUntil(reads);
  Buffer part = arena_->Take(2 * kPage);
  EXPECT_FALSE(reads->Done());
  EXPECT_THAT(part.Prepare(), IsOk());
  EXPECT_TRUE(reads->Done());
}

TEST_F(ArenaTest, ALostDeviceIsToldByPrepare) {
  const auto reads = std::make_shared<FakeEvent>();
  reads->Fail(absl::InternalError("lost"));
  TakePrepared(1).InUseUntil(reads);
  EXPECT_THAT(arena_->Take(2 * kPage).Prepare(), StatusIs(absl::StatusCode::kInternal, "lost"));
  EXPECT_EQ(arena_->committed_bytes(), kPage);
}

}  // namespace
}  // namespace ditserve
