#include "core/residency/transfers/transfer_path.h"

#include <gmock/gmock.h>

namespace ditserve {
namespace {

using ::testing::ElementsAre;

constexpr DType kStored = DType::kBFloat16, kNarrow = DType::kFloat8E4M3;

// A weight and a bias.
class TransferPathTest : public ::testing::Test {
 protected:
  TransferPathTest() { module_.stored = {&tensor_, &tensor_}; }

  static CopyForm Form(const Precision& weight, DType held) {
    return {{{weight, held}, {Precision(kStored), kStored}}};
  }

  const StoredTensor tensor_{"linear.weight", kStored, {1}, 0, 0, 2};
  ModelWeights::Module module_;
  const CopyForm stored_ = Form(Precision(kStored), kStored);
  const CopyForm narrow_ = Form(Precision(kStored).Through(kNarrow), kNarrow);
  const CopyForm rounded_ = Form(Precision(kStored).Through(kNarrow), kStored);
};

TEST_F(TransferPathTest, EachCopyIsMadeFromTheOneBefore) {
  const TransferPath path = PathOf(module_, nullptr, {&stored_, &narrow_, &rounded_}, /*as_stored=*/false);
  EXPECT_FALSE(path.read_in_place);
  EXPECT_THAT(path.steps,
              ElementsAre(ElementsAre(TransferStep{kStored, kStored}, TransferStep{kStored, kStored}),
                          ElementsAre(TransferStep{kStored, kNarrow, kNarrow}, TransferStep{kStored, kStored}),
                          ElementsAre(TransferStep{kNarrow, kStored}, TransferStep{kStored, kStored})));
}

TEST_F(TransferPathTest, RoundingsAreOnTheWayWhereNoCopyIsKept) {
  EXPECT_EQ(PathOf(module_, nullptr, {&rounded_}, true).steps[0][0], (TransferStep{kStored, kNarrow, kStored}));
  EXPECT_EQ(PathOf(module_, &narrow_, {&rounded_}, true).steps[0][0], (TransferStep{kNarrow, kStored}));
}

TEST_F(TransferPathTest, WhatIsKeptAsItIsStoredIsReadInPlace) {
  EXPECT_TRUE(PathOf(module_, nullptr, {&stored_}, /*as_stored=*/true).read_in_place);
  EXPECT_TRUE(PathOf(module_, nullptr, {&stored_, &narrow_}, true).read_in_place);
  EXPECT_FALSE(PathOf(module_, nullptr, {&stored_}, false).read_in_place) << "it does not lie as in its shard";
  EXPECT_FALSE(PathOf(module_, nullptr, {&rounded_}, true).read_in_place) << "its values are others";
  EXPECT_FALSE(PathOf(module_, &stored_, {&stored_}, true).read_in_place) << "nothing is read";
}

}  // namespace
}  // namespace ditserve
