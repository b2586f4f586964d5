// What holds for an Arena whatever happens: random traces beside a model, and threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "core/memory/arena.h"
#include "tests/core/memory/watched_device.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

constexpr int64_t kPage = kHostPageBytes;

// Random takes, puts, trims and refusals beside a model that knows sizes alone.
class ArenaTrace {
 public:
  explicit ArenaTrace(uint32_t seed) : random_(seed) {}
  ~ArenaTrace() {
    for (Part& part : parts_) Check(part);
    parts_.clear();
    garbage_.clear();
    arena_->Trim(INT64_MAX / 2).Free();
    EXPECT_EQ(device_.allocated_bytes(Memory::kDevice), 0);
  }

  void Step() {
    switch (Pick(8)) {
      case 0:
      case 1:
      case 2:
        return Take();
      case 3:
        return Prepare();
      case 4:
      case 5:
        return Put();
      case 6:
        return Trim();
      default:
        return Free();
    }
  }

  void CheckInvariants() {
    int64_t held = cached_, given = cached_;
    for (const Part& part : parts_) {
      held += part.buffer.size_bytes();
      given += part.prepared ? part.buffer.size_bytes() : part.displaced;
    }
    for (const Garbage& garbage : garbage_) held += garbage.size_bytes(), given += garbage.size_bytes();
    EXPECT_EQ(arena_->committed_bytes(), held);
    EXPECT_EQ(arena_->cached_bytes(), cached_);
    EXPECT_EQ(device_.allocated_bytes(Memory::kDevice), given);
    device_.Allow(held);
  }

 private:
  struct Part {
    Buffer buffer;
    bool prepared = false;
    int64_t displaced = 0;  // Bytes of holes that wait for Prepare.
    std::byte pattern{};
  };

  int64_t Pick(int64_t below) { return static_cast<int64_t>(random_() % static_cast<uint32_t>(below)); }

  void Take() {
    if (arena_->committed_bytes() > 200 * kPage) return;
    const int64_t bytes = (1 + Pick(Pick(4) == 0 ? 40 : 6)) * kPage;
    const int64_t before = arena_->committed_bytes(), cached_before = arena_->cached_bytes();
    Part part{arena_->Take(bytes)};
    EXPECT_EQ(arena_->committed_bytes() - before, std::max<int64_t>(0, bytes - cached_before));
    const int64_t taken = std::min(bytes, cached_before);
    cached_ -= taken;
    EXPECT_EQ(arena_->cached_bytes(), cached_);
    part.displaced = taken;  // Or all of it is a hole's.
    device_.Allow(arena_->committed_bytes());
    if (Pick(2) == 0) TryRefused(part);
    for (const Part& other : parts_) {
      const std::byte* const begin = other.buffer.data();
      EXPECT_TRUE(begin + other.buffer.size_bytes() <= part.buffer.data() || part.buffer.data() + bytes <= begin)
          << "parts overlap";
    }
    parts_.push_back(std::move(part));
  }
  void TryRefused(Part& part) {
    const int64_t given = device_.allocated_bytes(Memory::kDevice);
    device_.FailAllocation(1);
    part.prepared = part.buffer.Prepare().ok();  // What got a hole needs no memory.
    device_.FailAllocation(0);
    EXPECT_EQ(given - device_.allocated_bytes(Memory::kDevice), part.prepared ? 0 : part.displaced);
    part.displaced = 0;
    if (part.prepared) Fill(part);
  }
  void Prepare() {
    for (Part& part : parts_) {
      if (part.prepared || Pick(2) == 0) continue;
      EXPECT_THAT(part.buffer.Prepare(), IsOk());
      part.prepared = true;
      Fill(part);
    }
  }
  void Put() {
    if (parts_.empty()) return;
    std::swap(parts_[static_cast<size_t>(Pick(static_cast<int64_t>(parts_.size())))], parts_.back());
    Check(parts_.back());
    cached_ += parts_.back().prepared ? parts_.back().buffer.size_bytes() : parts_.back().displaced;
    parts_.pop_back();
  }
  void Trim() {
    const int64_t bytes = Pick(20) * kPage;
    garbage_.push_back(arena_->Trim(bytes));
    EXPECT_EQ(garbage_.back().size_bytes(), std::min(bytes, cached_));
    cached_ -= garbage_.back().size_bytes();
  }
  void Free() {
    if (garbage_.empty()) return;
    garbage_.back().Free();
    garbage_.pop_back();
  }
  void Fill(Part& part) {
    part.pattern = static_cast<std::byte>(1 + Pick(255));
    std::memset(part.buffer.data(), static_cast<int>(part.pattern), static_cast<size_t>(part.buffer.size_bytes()));
  }
  static void Check(const Part& part) {
    if (!part.prepared) return;
    const std::byte* const begin = part.buffer.data();
    EXPECT_TRUE(std::all_of(begin, begin + part.buffer.size_bytes(), [&](std::byte b) { return b == part.pattern; }));
  }

  std::mt19937 random_;
  WatchedDevice device_;
  std::unique_ptr<Arena> arena_ = *Arena::Make(&device_, Memory::kDevice, 20'000 * kPage);
  std::vector<Part> parts_;
  std::vector<Garbage> garbage_;
  int64_t cached_ = 0;
};

TEST(ArenaPropertyTest, RandomTracesKeepTheModelsBytes) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    ArenaTrace trace(seed);
    for (int step = 0; step < 400 && !::testing::Test::HasFailure(); ++step) {
      trace.Step();
      trace.CheckInvariants();
    }
  }
}

TEST(ArenaPropertyTest, ThreadsLoseNothing) {
  constexpr int kThreads = 4;
  FakeDevice device;
  const std::unique_ptr<Arena> arena = *Arena::Make(&device, Memory::kDevice, 100'000 * kPage);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937 random(static_cast<uint32_t>(thread));
      std::vector<Buffer> parts;
      for (int step = 0; step < 3000; ++step) {
        if (random() % 2 == 0) {
          parts.push_back(arena->Take(static_cast<int64_t>(1 + random() % 8) * kPage));
          EXPECT_THAT(parts.back().Prepare(), IsOk());
          std::memset(parts.back().data(), thread, static_cast<size_t>(parts.back().size_bytes()));
        } else if (!parts.empty()) {
          Buffer& part = parts[random() % parts.size()];
          EXPECT_EQ(part.data()[part.size_bytes() - 1], static_cast<std::byte>(thread));
          std::swap(part, parts.back());
          parts.pop_back();
        }
        if (random() % 8 == 0) arena->Trim(4 * kPage).Free();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(arena->committed_bytes(), arena->cached_bytes());
  EXPECT_EQ(device.allocated_bytes(Memory::kDevice), arena->cached_bytes());
}

}  // namespace
}  // namespace ditserve
