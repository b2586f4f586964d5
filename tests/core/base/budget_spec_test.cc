#include "core/base/budget_spec.h"

#include <gtest/gtest.h>

namespace ditserve {
namespace {

TEST(ParseBudgetTest, TakesBytesAndShares) {
  EXPECT_EQ(ParseBudget("8 GiB")->bytes, int64_t{8} << 30);
  EXPECT_EQ(ParseBudget("1")->bytes, 1);
  EXPECT_EQ(ParseBudget("12.5%")->bytes, std::nullopt);
  EXPECT_EQ(ParseBudget("12.5%")->share, 0.125);
  EXPECT_EQ(ParseBudget("100%")->share, 1);
}

TEST(ParseBudgetTest, RefusesWhatIsNeither) {
  for (const char* text : {"", "0", "-1", "much", "1TiB", "0%", "-5%", "100.1%", "nan%", "inf%", "%", "5%%", "5%GiB"}) {
    EXPECT_FALSE(ParseBudget(text).has_value()) << text;
  }
}

TEST(ParseBudgetTest, OnlyADevicesBudgetIsLeftToTheServer) {
  EXPECT_TRUE(ParseDeviceBudget("auto")->automatic);
  EXPECT_EQ(ResolveBudget(*ParseDeviceBudget("auto"), 1000), 600);
  EXPECT_FALSE(ParseDeviceBudget("60%")->automatic);
  EXPECT_FALSE(ParseBudget("auto").has_value());
}

TEST(ResolveBudgetTest, TakesBytesAsTheyAreAndSharesOfTheTotal) {
  EXPECT_EQ(ResolveBudget({.bytes = 5}, 100), 5);
  EXPECT_EQ(ResolveBudget({.share = 0.6}, 999), 599);
  EXPECT_EQ(ResolveBudget({.share = 1}, int64_t{1} << 40), int64_t{1} << 40);
}

}  // namespace
}  // namespace ditserve
