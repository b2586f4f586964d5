#include "core/memory/region.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "core/memory/tensor_region.h"

namespace ditserve {
namespace {

constexpr int64_t kUnit = Region::kAlignment;

// The same, unit by unit.
class NaiveRegion {
 public:
  std::optional<int64_t> Take(int64_t bytes) {
    const int64_t units = (bytes + kUnit - 1) / kUnit, end = End();
    int64_t best = -1, best_size = 0;
    for (int64_t begin = 0; begin < end;) {
      int64_t size = 0;
      while (begin + size < end && !used_[static_cast<size_t>(begin + size)]) ++size;
      if (size >= units && (best < 0 || size < best_size)) best = begin, best_size = size;
      begin += std::max<int64_t>(size, 1);
    }
    if (best < 0) best = end;
    if (best + units > static_cast<int64_t>(used_.size())) return std::nullopt;
    std::fill_n(used_.begin() + best, units, true);
    most_ = std::max(most_, End());
    return best * kUnit;
  }
  void Give(int64_t offset, int64_t bytes) {
    std::fill_n(used_.begin() + offset / kUnit, (bytes + kUnit - 1) / kUnit, false);
  }

  explicit NaiveRegion(int64_t units) : used_(static_cast<size_t>(units)) {}
  int64_t used_bytes() const { return std::count(used_.begin(), used_.end(), true) * kUnit; }
  int64_t most_bytes() const { return most_ * kUnit; }

 private:
  int64_t End() const { return std::distance(std::find(used_.rbegin(), used_.rend(), true), used_.rend()); }

  std::vector<bool> used_;
  int64_t most_ = 0;
};

TEST(RegionTest, PartsLieWhereTheNaiveModelHasThemAndWhatItRefusesIsRefused) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    std::mt19937 random(seed);
    const int64_t units = 16 + random() % 100;
    Region region(units * kUnit + random() % kUnit);
    NaiveRegion naive(units);
    std::vector<std::pair<int64_t, int64_t>> held;
    for (int step = 0; step < 300; ++step) {
      if (random() % 5 < 3) {
        const int64_t bytes = 1 + random() % (random() % 8 == 0 ? 40 * kUnit : 6 * kUnit);
        const std::optional<int64_t> offset = region.Take(bytes);
        ASSERT_EQ(offset, naive.Take(bytes)) << "seed " << seed << ", step " << step;
        if (offset) held.emplace_back(*offset, bytes);
      } else if (!held.empty()) {
        std::swap(held[random() % held.size()], held.back());
        region.Give(held.back().first);
        naive.Give(held.back().first, held.back().second);
        held.pop_back();
      }
      ASSERT_EQ(region.used_bytes(), naive.used_bytes());
      ASSERT_EQ(region.most_bytes(), naive.most_bytes());
    }
  }
}

TEST(RegionTest, OneAsLargeAsOneWithoutEndGrowsHoldsTheSameParts) {
  for (uint32_t seed = 1; seed <= 100; ++seed) {
    const auto run = [seed](Region region) {
      std::mt19937 random(seed);
      std::vector<int64_t> held, offsets;
      for (int step = 0; step < 200; ++step) {
        if (held.empty() || random() % 2 == 0) {
          offsets.push_back(region.Take(1 + random() % (20 * kUnit)).value_or(-1));
          held.push_back(offsets.back());
        } else {
          std::swap(held[random() % held.size()], held.back());
          region.Give(held.back());
          held.pop_back();
        }
      }
      return std::pair(offsets, region.most_bytes());
    };
    const auto endless = run(Region());
    EXPECT_EQ(run(Region(endless.second)), endless);
  }
}

TEST(RegionTest, RefusesWhatCanNeverFit) {
  Region region(10 * kUnit);
  EXPECT_EQ(region.Take(std::numeric_limits<int64_t>::max()), std::nullopt);
  EXPECT_EQ(region.Take(10 * kUnit + 1), std::nullopt);
  EXPECT_EQ(region.Take(10 * kUnit), 0);
}

TEST(TensorRegionTest, IsItsMemoryAndNoMore) {
  std::array<std::byte, 4 * kUnit> memory;
  TensorRegion region(absl::MakeSpan(memory));
  EXPECT_EQ(region.Allocate(kUnit), memory.data());
  std::byte* const second = region.Allocate(3 * kUnit);
  EXPECT_EQ(second, memory.data() + kUnit);
  EXPECT_EQ(region.Allocate(1), nullptr);
  region.Free(second);
  EXPECT_EQ(region.Allocate(2 * kUnit), second);
  EXPECT_EQ(region.most_bytes(), 4 * kUnit);
}

TEST(TensorRegionTest, ItsOwnerEndsWithTheLastWhoHasATensorInIt) {
  std::array<std::byte, kUnit> memory;
  auto region = std::make_shared<TensorRegion>(absl::MakeSpan(memory));
  auto owner = std::make_shared<int>();
  const std::weak_ptr<int> watched = owner;
  region->Own(std::move(owner));
  std::shared_ptr<TensorMemory> of_a_tensor = region;
  region.reset();
  EXPECT_FALSE(watched.expired());
  of_a_tensor.reset();
  EXPECT_TRUE(watched.expired());
}

}  // namespace
}  // namespace ditserve
