#include "core/base/quota.h"

#include <gtest/gtest.h>

#include <array>
#include <thread>
#include <utility>

namespace ditserve {
namespace {

TEST(QuotaTest, GivesOutNoMoreThanItsLimit) {
  Quota quota(5);
  const Quota::Hold three = quota.Take(3);
  EXPECT_TRUE(three);
  EXPECT_FALSE(quota.Take(3));
  Quota::Hold two = quota.Take(2);
  EXPECT_TRUE(two);
  EXPECT_EQ(quota.held(), 5);
  Quota::Hold moved = std::move(two);
  two = Quota::Hold();
  EXPECT_EQ(quota.held(), 5);
  moved = Quota::Hold();
  EXPECT_EQ(quota.held(), 3);
}

TEST(QuotaTest, GivesOutNoMoreToManyAtOnce) {
  Quota quota(3);
  std::array<std::thread, 4> threads;
  for (std::thread& each : threads) {
    each = std::thread([&quota] {
      for (int i = 0; i < 10'000; ++i) {
        const Quota::Hold two = quota.Take(2);
        EXPECT_FALSE(two && quota.Take(2));
      }
    });
  }
  for (std::thread& each : threads) each.join();
  EXPECT_EQ(quota.held(), 0);
}

}  // namespace
}  // namespace ditserve
