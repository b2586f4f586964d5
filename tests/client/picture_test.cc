#include "client/ditctl/picture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <vector>

#include "client/ditctl/tensor_file.h"
#include "client/ditctl/tensors.h"
#include "tests/testing/status_matchers.h"

namespace ditserve::ditctl {
namespace {

// A sum in another order may fall on the other side of a whole number.
TEST(PictureTest, APreviewIsThePictureOfInvokeAi) {
  const absl::StatusOr<v1::Tensor> recorded = ReadTensor(DITSERVE_DENOISING_FILE, "preview.picture");
  ASSERT_THAT(recorded, IsOk());
  const std::vector<float> expected = Floats(*recorded);
  Picture picture;
  ASSERT_THAT(Preview(SeededTensor(0, "latents", {1, 16, 12, 20}, DType::kFloat32), picture), IsOk());
  EXPECT_EQ(picture.height, 12);
  EXPECT_EQ(picture.width, 20);
  ASSERT_EQ(picture.rgb.size(), expected.size());
  int others = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const int difference = std::abs(static_cast<int>(picture.rgb[i]) - static_cast<int>(expected[i]));
    EXPECT_LE(difference, 1) << i;
    others += difference;
  }
  EXPECT_LE(others, 2);
}

TEST(PictureTest, ImagesOfABatchAreSideBySide) {
  const v1::Tensor both = SeededTensor(0, "both", {2, 16, 4, 6}, DType::kBFloat16);
  Picture picture;
  ASSERT_THAT(Preview(both, picture), IsOk());
  EXPECT_EQ(picture.width, 12);
  EXPECT_EQ(picture.height, 4);
  const size_t half = both.data().size() / 2;
  for (const size_t item : {0u, 1u}) {
    v1::Tensor one = both;
    one.set_shape(0, 1);
    one.set_data(both.data().substr(item * half, half));
    Picture alone;
    ASSERT_THAT(Preview(one, alone), IsOk());
    for (size_t row = 0; row < 4; ++row) {
      for (size_t i = 0; i < 6 * 3; ++i) {
        EXPECT_EQ(picture.rgb[(row * 12 + item * 6) * 3 + i], alone.rgb[row * 6 * 3 + i]);
      }
    }
  }
}

TEST(PictureTest, OtherShapesAreToldAndWhatIsNoNumberIsBlack) {
  Picture picture;
  EXPECT_THAT(Preview(ConstantTensor(0, {1, 4, 4, 2}, DType::kFloat32), picture),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "latents have shape [1, 4, 4, 2], expected [B, 16, H/8, W/8], of a picture"));
  v1::Tensor nothing = ConstantTensor(0, {1, 16, 1, 1}, DType::kFloat32);
  nothing.clear_data();
  constexpr int64_t kLong = int64_t{1} << 40;
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{kLong, 16, 0, kLong}, {1, 16, 0, 1}, {0, 16, 1, 1}}) {
    nothing.mutable_shape()->Assign(shape.begin(), shape.end());
    EXPECT_THAT(Preview(nothing, picture), StatusIs(absl::StatusCode::kInvalidArgument, "latents have shape ["));
  }
  ASSERT_THAT(Preview(ConstantTensor(std::nanf(""), {1, 16, 1, 1}, DType::kFloat32), picture), IsOk());
  EXPECT_EQ(picture.rgb, (std::vector<uint8_t>{0, 0, 0}));
}

// Signature, IHDR, tEXt, IDAT and IEND, with the checksums of Python's zlib.
TEST(PictureTest, APngHasWhatItsReadersCheck) {
  const auto bytes = [](std::initializer_list<int> values) {
    std::string text;
    for (const int value : values) text += static_cast<char>(value);
    return text;
  };
  EXPECT_EQ(EncodePng({2, 1, {1, 2, 3, 250, 251, 252}}, "x"),
            bytes({0x89, 0x50, 0x4e, 0x47, 0xd, 0xa, 0x1a, 0xa}) +
                bytes({0x0, 0x0, 0x0, 0xd, 0x49, 0x48, 0x44, 0x52, 0x0,  0x0,  0x0,  0x2, 0x0,
                       0x0, 0x0, 0x1, 0x8, 0x2,  0x0,  0x0,  0x0,  0x7b, 0x40, 0xe8, 0xdd}) +
                bytes({0x0,  0x0,  0x0,  0x9,  0x74, 0x45, 0x58, 0x74, 0x43, 0x6f, 0x6d,
                       0x6d, 0x65, 0x6e, 0x74, 0x0,  0x78, 0xd7, 0xf4, 0x74, 0x8}) +
                bytes({0x0, 0x0, 0x0, 0x12, 0x49, 0x44, 0x41, 0x54, 0x78, 0x1, 0x1,  0x7, 0x0,  0xf8, 0xff,
                       0x0, 0x1, 0x2, 0x3,  0xfa, 0xfb, 0xfc, 0x6,  0x3,  0x2, 0xf8, 0xc, 0x82, 0xc0, 0x49}) +
                bytes({0x0, 0x0, 0x0, 0x0, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82}));
}

// Longer than what one block can store.
TEST(PictureTest, ALargePngIsStoredInSeveralBlocks) {
  const Picture picture = {256, 256, std::vector<uint8_t>(size_t{256} * 256 * 3, 7)};
  const size_t rows = 256 * (1 + 256 * 3), blocks = (rows + 0xfffe) / 0xffff;
  EXPECT_EQ(EncodePng(picture, "x").size(), 8 + 25 + (12 + 9) + (12 + 2 + 5 * blocks + rows + 4) + 12);
}

}  // namespace
}  // namespace ditserve::ditctl
