#include "server/rpc/tensor_codec.h"

#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "tests/server/tiny_model.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

TEST(TensorCodecTest, ViewsTheMessagesBytes) {
  const v1::Tensor proto = Ramp({2, 3});
  const absl::StatusOr<at::Tensor> tensor = ViewTensor(proto, "latents");
  ASSERT_THAT(tensor, IsOk());
  EXPECT_EQ(tensor->const_data_ptr(), proto.data().data());
  EXPECT_EQ(tensor->sizes(), (std::vector<int64_t>{2, 3}));
  EXPECT_EQ((*tensor)[1][2].item<float>(), 5.0f / 8);
}

TEST(TensorCodecTest, WritesBackWhatItRead) {
  for (int dtype = v1::DTYPE_FLOAT32; dtype <= v1::DTYPE_BOOL; ++dtype) {
    v1::Tensor proto;
    proto.set_dtype(static_cast<v1::Dtype>(dtype));
    proto.add_shape(1);
    for (size_t bytes = 1; bytes <= 8; bytes *= 2) {
      proto.set_data(std::string(bytes, '\1'));
      if (ViewTensor(proto, "x").ok()) break;
    }
    const absl::StatusOr<at::Tensor> tensor = ViewTensor(proto, "x");
    ASSERT_THAT(tensor, IsOk());
    v1::Tensor back;
    ASSERT_THAT(EncodeTensor(*tensor, back), IsOk());
    EXPECT_EQ(back.SerializeAsString(), proto.SerializeAsString()) << Name(proto.dtype());
  }
}

TEST(TensorCodecTest, WritesTheElementsOfAStridedTensorInRowMajorOrder) {
  v1::Tensor proto;
  ASSERT_THAT(EncodeTensor(at::arange(6, at::kInt).reshape({2, 3}).t(), proto), IsOk());
  EXPECT_EQ(proto.SerializeAsString(),
            MakeTensor<int32_t>(v1::DTYPE_INT32, {3, 2}, {0, 3, 1, 4, 2, 5}).SerializeAsString());
}

TEST(TensorCodecTest, RefusesToWriteADTypeTheApiHasNoWordFor) {
  v1::Tensor proto;
  EXPECT_THAT(EncodeTensor(at::arange(3, at::kDouble), proto), StatusIs(absl::StatusCode::kInternal, "dtype"));
}

TEST(TensorCodecTest, RefusesAnUnknownDType) {
  v1::Tensor proto = Ramp({2});
  proto.set_dtype(static_cast<v1::Dtype>(77));
  EXPECT_THAT(ViewTensor(proto, "latents"),
              StatusIs(kInvalid, "latents.dtype: 77 is no dtype, expected one of float32, bfloat16"));
  EXPECT_THAT(ViewTensor(v1::Tensor(), "latents"), StatusIs(kInvalid, "latents.dtype: 0 is no dtype"));
}

TEST(TensorCodecTest, RefusesDataThatDoesNotFillTheShape) {
  v1::Tensor proto = Ramp({2, 3});
  proto.mutable_data()->push_back('x');
  EXPECT_THAT(ViewTensor(proto, "latents"),
              StatusIs(kInvalid, "latents.data: holds 25 bytes, shape [2, 3] of float32 needs 24"));
}

TEST(TensorCodecTest, RefusesLengthsBelowOne) {
  for (int64_t length : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::min()}) {
    v1::Tensor proto = Ramp({2});
    proto.add_shape(length);
    EXPECT_THAT(ViewTensor(proto, "latents"), StatusIs(kInvalid, "expected lengths of at least 1"));
  }
}

TEST(TensorCodecTest, RefusesShapesWhoseSizeOverflows) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  const std::vector<std::vector<int64_t>> shapes = {
      {kMax}, {kMax / 4 + 1}, {kMax, kMax}, {int64_t{1} << 32, int64_t{1} << 32}, {int64_t{1} << 62, 2}, {2, 2, kMax}};
  for (const std::vector<int64_t>& shape : shapes) {
    v1::Tensor proto = Ramp({1});
    proto.mutable_shape()->Assign(shape.begin(), shape.end());
    EXPECT_THAT(ViewTensor(proto, "latents"), StatusIs(kInvalid, "is too large"));
  }
}

TEST(TensorCodecTest, RefusesMoreThanEightDimensions) {
  v1::Tensor proto = Ramp({1});
  for (int i = 0; i < 8; ++i) proto.add_shape(1);
  EXPECT_THAT(ViewTensor(proto, "latents"), StatusIs(kInvalid, "latents.shape: has 9 dimensions, expected at most 8"));
}

}  // namespace
}  // namespace ditserve
