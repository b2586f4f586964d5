#include "core/placement/precision.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ditserve {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(PrecisionTest, WideningAndBackRoundsNothing) {
  const Precision stored(DType::kBFloat16);
  EXPECT_EQ(stored.Through(DType::kBFloat16), stored);
  EXPECT_EQ(stored.Through(DType::kFloat32), stored);
  EXPECT_EQ(stored.Through(DType::kFloat32).Through(DType::kBFloat16), stored);
  EXPECT_EQ(stored.ToString(), "");
}

TEST(PrecisionTest, NarrowingRoundsOnceWhateverFollows) {
  const Precision narrowed = Precision(DType::kBFloat16).Through(DType::kFloat8E4M3);
  EXPECT_EQ(narrowed.ToString(), "float8_e4m3fn");
  for (const DType wider : {DType::kBFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat8E4M3}) {
    EXPECT_EQ(narrowed.Through(wider), narrowed) << Name(wider);
  }
  EXPECT_FALSE(narrowed == Precision(DType::kBFloat16));
}

TEST(PrecisionTest, RoundingsAreKeptInOrder) {
  const Precision stored(DType::kFloat32);
  const Precision there = stored.Through(DType::kFloat16).Through(DType::kBFloat16);
  const Precision other = stored.Through(DType::kBFloat16).Through(DType::kFloat16);
  EXPECT_EQ(there.ToString(), "float16>bfloat16");
  EXPECT_EQ(other.ToString(), "bfloat16>float16");
  EXPECT_FALSE(there == other);
}

TEST(PrecisionTest, LeadsToLaterOnesByWhatTheyRoundMore) {
  const Precision stored(DType::kFloat32);
  const Precision half = stored.Through(DType::kFloat16);
  const Precision both = half.Through(DType::kBFloat16);
  EXPECT_THAT(stored.RoundingsTo(both), ElementsAre(DType::kFloat16, DType::kBFloat16));
  EXPECT_THAT(half.RoundingsTo(both), ElementsAre(DType::kBFloat16));
  EXPECT_THAT(both.RoundingsTo(both), IsEmpty());
}

TEST(PrecisionTest, OnlyAPrefixLeadsToALaterOne) {
  const Precision stored(DType::kFloat32);
  const Precision half = stored.Through(DType::kFloat16);
  const Precision brain = stored.Through(DType::kBFloat16);
  EXPECT_TRUE(stored.IsPrefixOf(half));
  EXPECT_TRUE(half.IsPrefixOf(half));
  EXPECT_TRUE(half.IsPrefixOf(half.Through(DType::kFloat8E4M3)));
  EXPECT_FALSE(half.IsPrefixOf(stored));
  EXPECT_FALSE(half.IsPrefixOf(brain));
}

}  // namespace
}  // namespace ditserve
