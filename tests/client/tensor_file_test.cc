#include "client/ditctl/tensor_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "client/ditctl/npy.h"
#include "client/ditctl/tensors.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve::ditctl {
namespace {

size_t FilesIn(const TempFolder& folder) {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder.path()), {}));
}

TEST(TensorFileTest, SafetensorsKeepBFloat16) {
  const TempFolder folder;
  const v1::Tensor tensor = SeededTensor(1, "x", {2, 3}, DType::kBFloat16);
  ASSERT_THAT(WriteTensor(folder / "x.safetensors", "output", tensor), IsOk());
  const auto read = ReadTensor(folder / "x.safetensors", "output");
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->SerializeAsString(), tensor.SerializeAsString());
  EXPECT_EQ(FilesIn(folder), 1u);
}

TEST(TensorFileTest, SafetensorsKeepMetadataAndNpyHasNoPlaceForIt) {
  const TempFolder folder;
  const Metadata metadata = {{"steps", "3"}, {"of", "a \"loop\""}};
  for (const char* name : {"x.safetensors", "x.npy"}) {
    ASSERT_THAT(WriteTensor(folder / name, "output", SeededTensor(1, "x", {2}, DType::kFloat32), metadata), IsOk());
    Metadata read;
    ASSERT_THAT(ReadTensor(folder / name, "output", &read), IsOk());
    EXPECT_EQ(read, std::string(name) == "x.npy" ? Metadata() : metadata);
  }
}

TEST(TensorFileTest, NpyTakesBFloat16AsFloat32) {
  const TempFolder folder;
  const v1::Tensor tensor = SeededTensor(1, "x", {2, 3}, DType::kBFloat16);
  ASSERT_THAT(WriteTensor(folder / "x.npy", "output", tensor), IsOk());
  const auto read = ReadTensor(folder / "x.npy", "");
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->dtype(), v1::DTYPE_FLOAT32);
  EXPECT_EQ(Floats(*read), Floats(tensor));
  EXPECT_EQ(FilesIn(folder), 1u);
}

TEST(TensorFileTest, WritesOverAnOlderFile) {
  const TempFolder folder;
  WriteFile(folder / "x.npy", "older");
  ASSERT_THAT(WriteTensor(folder / "x.npy", "", SeededTensor(1, "x", {2}, DType::kFloat32)), IsOk());
  EXPECT_THAT(ReadTensor(folder / "x.npy", ""), IsOk());
}

TEST(TensorFileTest, WritesWhereOneWithTheSameNumberWasKilled) {
  const TempFolder folder;
  for (const char* name : {"x.npy", "x.safetensors"}) {
    WriteFile(absl::StrCat(folder / name, ".partial-", getpid()), "half of it");
    ASSERT_THAT(WriteTensor(folder / name, "output", SeededTensor(1, "x", {2}, DType::kFloat32)), IsOk());
    EXPECT_THAT(ReadTensor(folder / name, "output"), IsOk());
  }
  EXPECT_EQ(FilesIn(folder), 2u);
}

TEST(TensorFileTest, WhatCannotBeWrittenLeavesNothing) {
  const TempFolder folder;
  const v1::Tensor tensor = SeededTensor(1, "x", {2}, DType::kFloat32);
  for (const char* name : {"x.npy", "x.safetensors"}) {
    std::filesystem::create_directories(folder / name);
    WriteFile(folder / name + "/inside", "");
    const absl::Status status = WriteTensor(folder / name, "output", tensor);
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable, std::string("can't write '") + (folder / name)));
  }
  EXPECT_EQ(FilesIn(folder), 2u);  // The folders that stood in the way.
  EXPECT_FALSE(WriteTensor(folder / "none/x.npy", "", tensor).ok());
  EXPECT_FALSE(WriteTensor(folder / "none/x.safetensors", "output", tensor).ok());
}

TEST(TensorFileTest, TellsBeforehandWhatCannotBeWritten) {
  const TempFolder folder;
  EXPECT_THAT(CheckWritable(folder / "x.npy"), IsOk());
  EXPECT_THAT(CheckWritable("x.safetensors"), IsOk());
  EXPECT_THAT(CheckWritable(folder / "x.bin"), StatusIs(absl::StatusCode::kInvalidArgument, "ends in .npy"));
  EXPECT_THAT(CheckWritable(folder / ".npy"), StatusIs(absl::StatusCode::kInvalidArgument, "ends in .npy"));
  EXPECT_THAT(CheckWritable(folder / "none/x.npy"),
              StatusIs(absl::StatusCode::kInvalidArgument, "none': No such file or directory"));
}

}  // namespace
}  // namespace ditserve::ditctl
