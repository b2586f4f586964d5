#include "core/placement/copy_form.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <optional>
#include <utility>
#include <vector>

namespace ditserve {
namespace {

using ::testing::ElementsAre;
using ::testing::FieldsAre;

constexpr Scales kOfTensor = {Granularity::kTensor, DType::kFloat32};
constexpr Scales kOfRows = {Granularity::kRow, DType::kFloat32};
constexpr Scales kOfBlocks = {Granularity::kBlock, DType::kBFloat16, 64};

Encoding In(DType dtype, std::optional<Scales> scales = std::nullopt) { return {Precision(dtype), dtype, scales}; }

// A module whose parameters lie one after the other in a shard, beginning at byte 512.
class Stored {
 public:
  Stored(DType dtype, const std::vector<std::vector<int64_t>>& shapes) {
    ModelWeights::Run run = {512, 512, {}};
    for (const std::vector<int64_t>& shape : shapes) {
      const int64_t bytes = ElementCount(shape) * SizeOf(dtype);
      tensors_.push_back({"", dtype, shape, 0, run.end_bytes, bytes});
      module_.stored.push_back(&tensors_.back());
      run.parameters.push_back(static_cast<int>(run.parameters.size()));
      run.end_bytes += bytes;
    }
    module_.runs.push_back(run);
  }

  CopyLayout In(const CopyForm& form, bool in_host_memory = false) const {
    return LayoutOf(module_, form, in_host_memory);
  }

 private:
  std::deque<StoredTensor> tensors_;
  ModelWeights::Module module_;
};

// Of uneven shapes, whose rows no multiple of anything fills.
const Stored& Linear() {
  static const Stored linear(DType::kBFloat16, {{33, 100}, {33}});
  return linear;
}

TEST(CopyFormTest, ElementsFollowEachOtherInTheirOwnDtypes) {
  const CopyLayout layout = Linear().In({{In(DType::kFloat8E4M3), In(DType::kFloat32)}});
  EXPECT_THAT(layout.places, ElementsAre(FieldsAre(0, std::nullopt), FieldsAre(3328, std::nullopt)));
  EXPECT_EQ(layout.size_bytes, 4096) << "3300 bytes and 132, each a multiple of 256";
}

TEST(CopyFormTest, ADtypeOfOneParameterMovesTheOthersAndTheSize) {
  const CopyLayout layout = Linear().In({{In(DType::kFloat32), In(DType::kBFloat16)}});
  EXPECT_THAT(layout.places, ElementsAre(FieldsAre(0, std::nullopt), FieldsAre(13'312, std::nullopt)));
  EXPECT_EQ(layout.size_bytes, 16'384) << "13200 bytes and 66";
}

TEST(CopyFormTest, TheLastParameterTakesWhatItsOwnDtypeTakes) {
  const Stored equals(DType::kBFloat16, {{33, 100}, {33, 100}, {33, 100}});
  const CopyLayout layout = equals.In({{In(DType::kFloat8E4M3), In(DType::kBFloat16), In(DType::kFloat32)}});
  EXPECT_THAT(layout.places,
              ElementsAre(FieldsAre(0, std::nullopt), FieldsAre(3328, std::nullopt), FieldsAre(9984, std::nullopt)));
  EXPECT_EQ(layout.size_bytes, 24'576) << "3300, 6600 and 13200 bytes";
}

TEST(CopyFormTest, AScaleOfTheTensorFollowsItsElements) {
  const CopyLayout layout = Linear().In({{In(DType::kFloat8E4M3, kOfTensor), In(DType::kBFloat16)}});
  EXPECT_THAT(layout.places, ElementsAre(FieldsAre(0, 3328), FieldsAre(3584, std::nullopt)));
  EXPECT_EQ(layout.size_bytes, 4096);
}

TEST(CopyFormTest, AScaleARowTakesAsManyAsThereAreRows) {
  const Stored linear(DType::kBFloat16, {{65, 60}, {65}});
  const CopyLayout layout = linear.In({{In(DType::kInt8, kOfRows), In(DType::kBFloat16)}});
  EXPECT_THAT(layout.places, ElementsAre(FieldsAre(0, 4096), FieldsAre(4608, std::nullopt)))
      << "3900 bytes, then 65 scales of 4";
  EXPECT_EQ(layout.size_bytes, 8192);
}

TEST(CopyFormTest, AScaleABlockCountsTheLastOfEachRowThoughItIsShort) {
  const CopyLayout layout = Linear().In({{In(DType::kInt8, kOfBlocks), In(DType::kBFloat16)}});
  EXPECT_THAT(layout.places, ElementsAre(FieldsAre(0, 3328), FieldsAre(3584, std::nullopt))) << "66 scales of 2 bytes";
  const Scales wide = {Granularity::kBlock, DType::kFloat32, 64};
  const CopyLayout wider = Linear().In({{In(DType::kInt8, wide), In(DType::kBFloat16)}});
  EXPECT_THAT(wider.places, ElementsAre(FieldsAre(0, 3328), FieldsAre(3840, std::nullopt))) << "66 scales of 4 bytes";
}

TEST(CopyFormTest, ScalesAreInTheSize) {
  const Stored rows(DType::kBFloat16, {{1024, 4}});
  EXPECT_EQ(rows.In({{In(DType::kInt8)}}).size_bytes, 4096);
  EXPECT_EQ(rows.In({{In(DType::kInt8, kOfTensor)}}).size_bytes, 8192);
  EXPECT_EQ(rows.In({{In(DType::kInt8, kOfRows)}}).size_bytes, 8192);
  EXPECT_EQ(rows.In({{In(DType::kInt8, {{Granularity::kBlock, DType::kFloat32, 2}})}}).size_bytes, 12'288);
}

TEST(CopyFormTest, EachParameterMayHaveScales) {
  const CopyLayout layout = Linear().In({{In(DType::kInt8, kOfRows), In(DType::kInt8, kOfTensor)}});
  EXPECT_THAT(layout.places, ElementsAre(FieldsAre(0, 3328), FieldsAre(3584, 3840)));
  EXPECT_EQ(layout.size_bytes, 4096);
}

TEST(CopyFormTest, InHostMemoryItLiesAsStoredOnlyIfEveryParameterIs) {
  const CopyForm stored = {{In(DType::kBFloat16), In(DType::kBFloat16)}};
  const CopyLayout layout = Linear().In(stored, /*in_host_memory=*/true);
  EXPECT_TRUE(layout.as_stored);
  EXPECT_THAT(layout.places, ElementsAre(FieldsAre(512, std::nullopt), FieldsAre(7112, std::nullopt)));
  EXPECT_FALSE(Linear().In(stored, /*in_host_memory=*/false).as_stored);
  EXPECT_FALSE(Linear().In({{In(DType::kBFloat16), In(DType::kFloat32)}}, /*in_host_memory=*/true).as_stored);
  EXPECT_FALSE(Linear().In({{In(DType::kFloat32), In(DType::kBFloat16)}}, /*in_host_memory=*/true).as_stored);
}

// As those of a transformer's block are: else the memory that one leaves would miss a page that the next one needs.
TEST(CopyFormTest, FourCopiesTakeAsMuchAsOneOfFourTimesTheWeightWhateverTheBiasIs) {
  const Stored attention(DType::kBFloat16, {{3072, 3072}, {3072}}), in(DType::kBFloat16, {{12288, 3072}, {12288}}),
      out(DType::kBFloat16, {{3072, 12288}, {3072}});
  for (const bool in_host_memory : {false, true}) {
    const auto bytes = [&](const Stored& module) {
      return module.In({{In(DType::kBFloat16), In(DType::kBFloat16)}}, in_host_memory).size_bytes;
    };
    EXPECT_EQ(bytes(in), bytes(out));
    EXPECT_EQ(4 * bytes(attention), bytes(out));
    EXPECT_LE(bytes(out), (int64_t{12288} * 3072 + 3072) * 2 * 1001 / 1000);
  }
}

TEST(CopyFormTest, WhatHasScalesDoesNotLieAsStored) {
  const Stored fp8(DType::kFloat8E4M3, {{33, 100}, {33}});
  EXPECT_TRUE(fp8.In({{In(DType::kFloat8E4M3), In(DType::kFloat8E4M3)}}, /*in_host_memory=*/true).as_stored);
  const CopyLayout layout =
      fp8.In({{In(DType::kFloat8E4M3, kOfTensor), In(DType::kFloat8E4M3)}}, /*in_host_memory=*/true);
  EXPECT_FALSE(layout.as_stored);
  EXPECT_THAT(layout.places, ElementsAre(FieldsAre(0, 3328), FieldsAre(3584, std::nullopt)));
}

}  // namespace
}  // namespace ditserve
