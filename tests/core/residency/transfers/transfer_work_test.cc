#include "core/residency/transfers/transfer_work.h"

#include <gtest/gtest.h>

namespace ditserve {
namespace {

const TransferStep kRead;
const TransferStep kCopy = {DType::kBFloat16, DType::kBFloat16};
const TransferStep kRound = {DType::kBFloat16, DType::kFloat8E4M3};

TEST(TransferWorkTest, KnowsNothingOfWhatWasNeverDone) {
  TransferWork work;
  EXPECT_FALSE(work.Of(kRead).has_value());
  work.Add(kRead, {100, 0, absl::Seconds(1)});
  work.Add(kCopy, {0, 0, absl::Seconds(1)});
  EXPECT_FALSE(work.Of(kCopy).has_value());
  EXPECT_FALSE(work.OfConversions().has_value());
  EXPECT_EQ(work.OfFresh(), 0);
}

TEST(TransferWorkTest, EachStepTakesWhatItTook) {
  TransferWork work;
  work.Add(kRead, {100, 0, absl::Seconds(1)});
  work.Add(kCopy, {100, 0, absl::Seconds(2)});
  work.Add(kCopy, {200, 0, absl::Seconds(1)});
  work.Add(kRound, {100, 0, absl::Seconds(5)});
  EXPECT_EQ(work.Of(kRead), 0.01);
  EXPECT_EQ(work.Of(kCopy), 0.01);
  EXPECT_EQ(work.Of(kRound), 0.05);
  EXPECT_EQ(work.OfConversions(), 8 / 400.0);
}

TEST(TransferWorkTest, FreshMemoryTakesWhatStepsTookMoreThere) {
  TransferWork work;
  work.Add(kRead, {300, 100, absl::Seconds(5)});  // Before anybody knows what reading takes.
  work.Add(kRead, {100, 0, absl::Seconds(1)});
  work.Add(kRead, {100, 100, absl::Seconds(3)});
  EXPECT_EQ(work.Of(kRead), 0.01);
  EXPECT_EQ(work.OfFresh(), (2.0 + 2.0) / 200);
  work.Add(kCopy, {1000, 0, absl::Seconds(1)});
  work.Add(kCopy, {1000, 600, absl::Seconds(5)});
  EXPECT_EQ(work.Of(kCopy), 0.001);
  EXPECT_EQ(work.OfFresh(), (2.0 + 2.0 + 4.0) / 800);
}

TEST(TransferWorkTest, WhereAllMemoryWasFreshThatIsPartOfTheStep) {
  TransferWork work;
  work.Add(kRead, {100, 100, absl::Seconds(2)});
  EXPECT_EQ(work.Of(kRead), 0.02);
  EXPECT_EQ(work.OfFresh(), 0);
}

TEST(TransferWorkTest, FreshMemoryThatTookNoMoreTakesNothing) {
  TransferWork work;
  work.Add(kRead, {100, 0, absl::Seconds(2)});
  work.Add(kRead, {100, 100, absl::Seconds(1)});
  EXPECT_EQ(work.OfFresh(), 0);
}

TEST(TransferWorkTest, OlderWorkCountsLess) {
  TransferWork work;
  work.Add(kRead, {TimedBytes::kRemembered, 0, absl::Seconds(100)});
  for (int i = 0; i < 20; ++i) work.Add(kRead, {TimedBytes::kRemembered, 0, absl::Seconds(1)});
  EXPECT_NEAR(*work.Of(kRead) * TimedBytes::kRemembered, 1, 1e-3);
}

}  // namespace
}  // namespace ditserve
