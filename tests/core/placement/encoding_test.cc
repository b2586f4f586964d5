#include "core/placement/encoding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ditserve {
namespace {

constexpr Scales kOfTensor = {Granularity::kTensor, DType::kFloat32};
constexpr Scales kOfRows = {Granularity::kRow, DType::kFloat32};

constexpr Scales OfBlocks(int64_t elements) { return {Granularity::kBlock, DType::kFloat32, elements}; }

TEST(EncodingTest, ATensorHasOneScaleWhateverItsShape) {
  EXPECT_EQ(ScaleCount(kOfTensor, {3072, 64}), 1);
  EXPECT_EQ(ScaleCount(kOfTensor, {7}), 1);
  EXPECT_EQ(ScaleCount(kOfTensor, {}), 1);
}

TEST(EncodingTest, ARowIsWhatHasOneFirstIndex) {
  EXPECT_EQ(ScaleCount(kOfRows, {3072, 64}), 3072);
  EXPECT_EQ(ScaleCount(kOfRows, {5, 2, 3}), 5);
  EXPECT_EQ(ScaleCount(kOfRows, {7}), 7);
  EXPECT_EQ(ScaleCount(kOfRows, {0, 64}), 0);
  EXPECT_EQ(ScaleCount(kOfRows, {}), 1);
}

TEST(EncodingTest, ABlockEndsWhereItsRowDoes) {
  EXPECT_EQ(ScaleCount(OfBlocks(64), {10, 128}), 20);
  EXPECT_EQ(ScaleCount(OfBlocks(64), {10, 129}), 30);
  EXPECT_EQ(ScaleCount(OfBlocks(64), {10, 1}), 10);
  EXPECT_EQ(ScaleCount(OfBlocks(4), {5, 2, 3}), 10);
  EXPECT_EQ(ScaleCount(OfBlocks(64), {7}), 7);
  EXPECT_EQ(ScaleCount(OfBlocks(64), {10, 0}), 0);
  EXPECT_EQ(ScaleCount(OfBlocks(64), {}), 1);
}

TEST(EncodingTest, RoundsOnAndNeverBack) {
  const Precision stored(DType::kBFloat16);
  const Encoding wide = {stored, DType::kBFloat16};
  const Encoding narrow = {stored.Through(DType::kFloat8E4M3), DType::kFloat8E4M3};
  EXPECT_TRUE(LeadsTo(wide, narrow));
  EXPECT_TRUE(LeadsTo(narrow, narrow));
  EXPECT_FALSE(LeadsTo(narrow, wide));
}

TEST(EncodingTest, ScaledOnesLeadNowhereAndNothingLeadsToThem) {
  const Precision stored(DType::kBFloat16);
  const Encoding plain = {stored, DType::kBFloat16};
  const Encoding scaled = {stored, DType::kInt8, kOfRows};
  EXPECT_FALSE(LeadsTo(plain, scaled));
  EXPECT_FALSE(LeadsTo(scaled, plain));
  EXPECT_FALSE(LeadsTo(scaled, scaled));
}

}  // namespace
}  // namespace ditserve
