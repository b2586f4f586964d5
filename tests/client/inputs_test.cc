#include "client/ditctl/inputs.h"

#include <gtest/gtest.h>

#include <cstring>

#include "client/ditctl/tensor_file.h"
#include "client/ditctl/tensors.h"
#include "core/storage/safetensors_writer.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve::ditctl {
namespace {

// The first four elements' bits.
template <typename T>
std::vector<T> Bits(const v1::Tensor& tensor) {
  std::vector<T> bits(4);
  std::memcpy(bits.data(), tensor.data().data(), bits.size() * sizeof(T));
  return bits;
}

std::vector<int64_t> ShapeOf(const v1::Tensor& tensor) { return {tensor.shape().begin(), tensor.shape().end()}; }

class InputsTest : public ::testing::Test {
 protected:
  InputsTest() { options.height = options.width = 16; }

  // A .safetensors file of zeros.
  std::string FileOf(const std::vector<SafetensorsWriter::Tensor>& tensors) {
    const std::string path = folder / "inputs.safetensors";
    auto writer = SafetensorsWriter::Create(path, tensors, {});
    EXPECT_THAT(writer, IsOk());
    for (const SafetensorsWriter::Tensor& tensor : tensors) {
      int64_t bytes = SizeOf(tensor.dtype);
      for (const int64_t length : tensor.shape) bytes *= length;
      EXPECT_THAT((*writer)->Append(std::vector<std::byte>(static_cast<size_t>(bytes))), IsOk());
    }
    EXPECT_THAT((*writer)->Finish(), IsOk());
    return path;
  }

  TempFolder folder;
  InputOptions options;
  v1::ForwardRequest request;
};

// Golden values: reckoned in Python from the formula in models/seeded_values.h.
TEST_F(InputsTest, MadeUpInputsAreTheSameBitsOnEveryMachine) {
  options.dtype = "float32";
  ASSERT_THAT(FillInputs(options, request), IsOk());
  EXPECT_EQ(Bits<uint32_t>(request.latents()), (std::vector<uint32_t>{0xbfe53e91, 0x3de78035, 0xbf44fcf7, 0xbedc6b18}));
  EXPECT_EQ(Bits<uint32_t>(request.prompt_emb()),
            (std::vector<uint32_t>{0x3f4d81a1, 0x3f4a1f99, 0x3fa46ad2, 0xbf31215d}));
}

TEST_F(InputsTest, BFloat16IsRoundedToTheNearest) {
  ASSERT_THAT(FillInputs(options, request), IsOk());
  EXPECT_EQ(Bits<uint16_t>(request.latents()), (std::vector<uint16_t>{0xbfe5, 0x3de8, 0xbf45, 0xbedc}));
  EXPECT_EQ(Bits<uint16_t>(request.prompt_emb()), (std::vector<uint16_t>{0x3f4e, 0x3f4a, 0x3fa4, 0xbf31}));
}

TEST_F(InputsTest, AnotherSeedMakesOtherInputs) {
  options.seed = 7;
  ASSERT_THAT(FillInputs(options, request), IsOk());
  EXPECT_EQ(Bits<uint16_t>(request.latents()), (std::vector<uint16_t>{0xbe2a, 0x3ff9, 0x3ed1, 0x3f13}));
}

TEST_F(InputsTest, ShapesFollowFromTheFlags) {
  options = InputOptions();
  options.batch = 2;
  options.prompt_tokens = 7;
  options.timestep = 0.5;
  options.dtype = "float16";
  ASSERT_THAT(FillInputs(options, request), IsOk());
  EXPECT_EQ(request.height(), 1024);
  EXPECT_EQ(request.width(), 1024);
  EXPECT_EQ(ShapeOf(request.latents()), (std::vector<int64_t>{2, 16, 128, 128}));
  EXPECT_EQ(ShapeOf(request.prompt_emb()), (std::vector<int64_t>{2, 7, 3584}));
  EXPECT_EQ(ShapeOf(request.timestep()), (std::vector<int64_t>{2}));
  EXPECT_EQ(Floats(request.timestep()), (std::vector<float>{0.5, 0.5}));
  EXPECT_EQ(request.latents().dtype(), v1::DTYPE_FLOAT16);
  EXPECT_FALSE(request.has_prompt_emb_mask());
}

TEST_F(InputsTest, AFileGivesAnyOfThemInItsOwnDType) {
  options = InputOptions();
  options.inputs = FileOf({{"latents", DType::kFloat16, {3, 16, 4, 6}}, {"prompt_emb_mask", DType::kInt64, {3, 5}}});
  ASSERT_THAT(FillInputs(options, request), IsOk());
  EXPECT_EQ(request.latents().dtype(), v1::DTYPE_FLOAT16);
  EXPECT_EQ(request.height(), 32);
  EXPECT_EQ(request.width(), 48);
  EXPECT_EQ(request.prompt_emb_mask().dtype(), v1::DTYPE_INT64);
  EXPECT_EQ(ShapeOf(request.prompt_emb()), (std::vector<int64_t>{3, 5, 3584}));
  EXPECT_EQ(ShapeOf(request.timestep()), (std::vector<int64_t>{3}));
}

TEST_F(InputsTest, PixelsThatAreGivenStand) {
  options.inputs = FileOf({{"latents", DType::kFloat16, {1, 16, 4, 6}}});
  ASSERT_THAT(FillInputs(options, request), IsOk());
  EXPECT_EQ(request.height(), 16);
  EXPECT_EQ(request.width(), 16);
}

TEST_F(InputsTest, AFlagOfItsOwnGoesBeforeTheFileOfAll) {
  options.inputs = FileOf({{"timestep", DType::kFloat32, {1}}, {"prompt_emb", DType::kFloat32, {1, 2, 3584}}});
  options.timestep = 0.25;
  const v1::Tensor prompt = SeededTensor(9, "x", {1, 3, 3584}, DType::kFloat32);
  ASSERT_THAT(WriteTensor(folder / "p.npy", "", prompt), IsOk());
  options.prompt_emb = folder / "p.npy";
  ASSERT_THAT(FillInputs(options, request), IsOk());
  EXPECT_EQ(Floats(request.timestep()), (std::vector<float>{0.25}));
  EXPECT_EQ(request.prompt_emb().SerializeAsString(), prompt.SerializeAsString());
}

TEST_F(InputsTest, RefusesATensorThatIsNoInput) {
  options.inputs = FileOf({{"prompt_embeds_mask", DType::kInt64, {1, 5}}});
  EXPECT_THAT(FillInputs(options, request),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "inputs.safetensors: has a tensor 'prompt_embeds_mask', expected only latents, prompt_emb, "
                       "prompt_emb_mask, timestep"));
}

TEST_F(InputsTest, RefusesATensorThatCannotBeSent) {
  options.inputs = FileOf({{"latents", DType::kFloat64, {1, 16, 2, 2}}});
  EXPECT_THAT(FillInputs(options, request),
              StatusIs(absl::StatusCode::kInvalidArgument, "tensor 'latents' is F64, which can't be sent"));
}

TEST_F(InputsTest, RefusesAnEmptyTensor) {
  options.inputs = FileOf({{"latents", DType::kFloat32, {int64_t{1} << 40, 0}}});
  EXPECT_THAT(FillInputs(options, request), StatusIs(absl::StatusCode::kInvalidArgument, "tensor 'latents' is empty"));
}

TEST_F(InputsTest, AMissingFileIsAnErrorAndNotMadeUp) {
  options.inputs = folder / "none.safetensors";
  EXPECT_THAT(FillInputs(options, request), StatusIs(absl::StatusCode::kNotFound, "none.safetensors"));
  options.inputs.reset();
  options.latents = folder / "none.npy";
  EXPECT_THAT(FillInputs(options, request), StatusIs(absl::StatusCode::kNotFound, "none.npy"));
  options.latents = FileOf({{"x", DType::kFloat32, {1}}});
  EXPECT_THAT(FillInputs(options, request),
              StatusIs(absl::StatusCode::kNotFound, "inputs.safetensors has no tensor 'latents'"));
}

TEST_F(InputsTest, ADamagedFileIsNamed) {
  WriteFile(folder / "bad.npy", "PK not numpy");
  options.latents = folder / "bad.npy";
  EXPECT_THAT(FillInputs(options, request),
              StatusIs(absl::StatusCode::kInvalidArgument, "bad.npy: not a usable .npy file: no NumPy magic"));
  WriteFile(folder / "bad.txt", "1 2 3");
  options.latents = folder / "bad.txt";
  EXPECT_THAT(FillInputs(options, request),
              StatusIs(absl::StatusCode::kInvalidArgument, "bad.txt: expected a .npy or .safetensors file"));
}

TEST_F(InputsTest, RefusesSizesOutOfRangeByFlag) {
  const auto refused = [&](const char* why) {
    EXPECT_THAT(FillInputs(options, request), StatusIs(absl::StatusCode::kInvalidArgument, why));
    options = InputOptions();
  };
  options.height = 0;
  refused("--height: expected 1 to 65536, found 0");
  options.width = 65537;
  refused("--width: expected 1 to 65536, found 65537");
  options.batch = -1;
  refused("--batch: expected 1 to 65536, found -1");
  options.prompt_tokens = 0;
  refused("--prompt-tokens: expected 1 to 65536, found 0");
  options.dtype = "int8";
  refused("--dtype: expected bfloat16, float16 or float32, found 'int8'");
  options.timestep = 1;
  options.timestep_file = "t.npy";
  refused("give either --timestep or --timestep-file");
}

TEST_F(InputsTest, RefusesMoreThanAMessageHoldsBeforeItAllocates) {
  options.height = options.width = 65536;
  options.batch = 65536;
  EXPECT_THAT(FillInputs(options, request),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "latents [65536, 16, 8192, 8192] in bfloat16 would exceed the 2 GiB that a message can hold"));
}

}  // namespace
}  // namespace ditserve::ditctl
