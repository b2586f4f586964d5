#include "core/memory/streaming_window.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "tests/testing/fake_device.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// An operation that ends when somebody waits for it.
class CountedEvent final : public DeviceEvent {
 public:
  explicit CountedEvent(int* waits) : waits_(waits) {}
  absl::Status Wait() override {
    ++*waits_;
    return absl::OkStatus();
  }

 private:
  int* const waits_;
};

class StreamingWindowTest : public ::testing::Test {
 protected:
  static constexpr int64_t kBudget = 1000;

  void AddSegment(int64_t bytes) { window_.Add(*ledger_.TryReserve(Memory::kDevice, MemoryKind::kStaging, bytes)); }
  Buffer Take(int64_t bytes) {
    std::optional<Buffer> part = window_.Take(bytes);
    EXPECT_TRUE(part.has_value()) << bytes;
    return *std::move(part);
  }
  MemoryUsage usage() const { return ledger_.Usage(Memory::kDevice); }

  FakeDevice device_;
  Ledger ledger_{{0, kBudget}};
  StreamingWindow window_{&device_};
};

TEST_F(StreamingWindowTest, HasNothingBeforeASegmentIsAdded) { EXPECT_FALSE(window_.Take(1).has_value()); }

TEST_F(StreamingWindowTest, PartsAreBookedAsWeightsAndHolesAsStaging) {
  AddSegment(100);
  EXPECT_EQ(usage().staging_bytes, 100);
  Buffer part = Take(30);
  EXPECT_EQ(usage().weights_bytes, 30);
  EXPECT_EQ(usage().staging_bytes, 70);
  window_.Put(std::move(part));
  EXPECT_EQ(usage().weights_bytes, 0);
  EXPECT_EQ(usage().staging_bytes, 100);
}

TEST_F(StreamingWindowTest, PartsDoNotOverlapAndAreOneAllocation) {
  AddSegment(100);
  Buffer first = Take(60), second = Take(40);
  EXPECT_THAT(first.Prepare(), IsOk());
  EXPECT_THAT(second.Prepare(), IsOk());
  EXPECT_EQ(second.data(), first.data() + 60);
  EXPECT_EQ(device_.allocated_bytes(Memory::kDevice), 100);
  EXPECT_FALSE(window_.Take(1).has_value());
  window_.Put(std::move(first));
  window_.Put(std::move(second));
}

TEST_F(StreamingWindowTest, HolesThatTouchBecomeOne) {
  AddSegment(90);
  std::vector<Buffer> parts;
  for (int i = 0; i < 3; ++i) parts.push_back(Take(30));
  window_.Put(std::move(parts[0]));
  window_.Put(std::move(parts[2]));
  EXPECT_FALSE(window_.Take(60).has_value()) << "they do not touch";
  window_.Put(std::move(parts[1]));
  Buffer all = Take(90);
  window_.Put(std::move(all));
}

TEST_F(StreamingWindowTest, APartDoesNotCrossSegments) {
  AddSegment(50);
  AddSegment(60);
  EXPECT_EQ(window_.SegmentsOf(50), 2);
  EXPECT_EQ(window_.SegmentsOf(51), 1);
  EXPECT_FALSE(window_.Take(61).has_value());
  Buffer part = Take(55);
  EXPECT_TRUE(window_.Owns(part));
  window_.Put(std::move(part));
}

TEST_F(StreamingWindowTest, WhatOperationsStillReadIsWaitedForByWhoeverGetsIt) {
  AddSegment(100);
  int waits = 0;
  std::vector<Buffer> parts;
  for (int i = 0; i < 2; ++i) {
    parts.push_back(Take(50));
    parts.back().InUseUntil(std::make_unique<CountedEvent>(&waits));
  }
  for (Buffer& part : parts) window_.Put(std::move(part));
  EXPECT_EQ(waits, 0) << "putting back does not wait";
  Buffer across = Take(70);
  EXPECT_THAT(across.Prepare(), IsOk());
  EXPECT_EQ(waits, 2);
  Buffer rest = Take(30);
  EXPECT_THAT(rest.Prepare(), IsOk());
  EXPECT_EQ(waits, 3) << "the second operation read this part too";
  window_.Put(std::move(across));
  window_.Put(std::move(rest));
}

TEST_F(StreamingWindowTest, RemovesTheSmallestFreeSegmentAndGivesItsBytesBack) {
  AddSegment(100);
  AddSegment(50);
  AddSegment(70);
  Buffer part = Take(100);
  {
    const std::optional<Buffer> first = window_.RemoveFree(), second = window_.RemoveFree();
    ASSERT_TRUE(first.has_value() && second.has_value());
    EXPECT_EQ(first->size_bytes(), 50);
    EXPECT_EQ(second->size_bytes(), 70);
    EXPECT_FALSE(window_.RemoveFree().has_value()) << "somebody has a part of the other";
    EXPECT_EQ(usage().total_bytes(), 220) << "not before they are freed";
  }
  EXPECT_EQ(usage().total_bytes(), 100);
  EXPECT_EQ(window_.segments(), 1);
  window_.Put(std::move(part));
}

TEST_F(StreamingWindowTest, FindsWhatIsInTheWayAndNoMore) {
  AddSegment(100);
  AddSegment(100);
  std::vector<Buffer> held;  // 0: free, then 20, 40 and 40; 1: 50 and 50.
  for (const int64_t bytes : {20, 40, 40, 50, 50}) held.push_back(Take(bytes));
  const std::vector<const Buffer*> parts = {&held[3], held.data(), &held[2], &held[1], &held[4]};
  EXPECT_THAT(window_.PartsInTheWay(40, parts), ElementsAre(0));
  EXPECT_THAT(window_.PartsInTheWay(60, parts), ElementsAre(1, 3)) << "the last does not touch the first";
  EXPECT_THAT(window_.PartsInTheWay(100, parts), ElementsAre(1, 3, 2));
  EXPECT_THAT(window_.PartsInTheWay(101, parts), IsEmpty());
  EXPECT_THAT(window_.PartsInTheWay(60, {held.data(), &held[2]}), IsEmpty());
  window_.Put(std::move(held[1]));
  EXPECT_THAT(window_.PartsInTheWay(60, {held.data(), &held[2]}), ElementsAre(0)) << "with the hole beside it";
  held.erase(held.begin() + 1);
  for (Buffer& part : held) window_.Put(std::move(part));
}

TEST_F(StreamingWindowTest, AFailedAllocationIsTriedAgain) {
  AddSegment(100);
  device_.FailAllocation(1);
  Buffer part = Take(10);
  EXPECT_THAT(part.Prepare(), StatusIs(absl::StatusCode::kResourceExhausted, ""));
  EXPECT_THAT(part.Prepare(), IsOk());
  window_.Put(std::move(part));
}

TEST_F(StreamingWindowTest, RandomTracesLoseNothing) {
  std::mt19937 random(3);
  AddSegment(400);
  AddSegment(600);
  std::vector<Buffer> held;
  int64_t held_bytes = 0;
  for (int i = 0; i < 20'000; ++i) {
    if (random() % 2 == 0 && !held.empty()) {
      std::swap(held[random() % held.size()], held.back());
      held_bytes -= held.back().size_bytes();
      window_.Put(std::move(held.back()));
      held.pop_back();
    } else if (std::optional<Buffer> part = window_.Take(1 + static_cast<int64_t>(random() % 200))) {
      for (const Buffer& other : held) {
        const bool apart = other.mapping() != part->mapping() ||
                           other.offset_bytes() + other.size_bytes() <= part->offset_bytes() ||
                           part->offset_bytes() + part->size_bytes() <= other.offset_bytes();
        ASSERT_TRUE(apart);
      }
      held_bytes += part->size_bytes();
      held.push_back(*std::move(part));
    }
    ASSERT_EQ(usage().weights_bytes, held_bytes);
    ASSERT_EQ(usage().total_bytes(), kBudget);
  }
  for (Buffer& part : held) window_.Put(std::move(part));
  Buffer all = Take(600);
  window_.Put(std::move(all));
}

}  // namespace
}  // namespace ditserve
