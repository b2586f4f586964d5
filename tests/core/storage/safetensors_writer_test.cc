#include "core/storage/safetensors_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

#include "tests/testing/safetensors_fixture.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

using Tensors = std::vector<SafetensorsWriter::Tensor>;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

absl::Span<const std::byte> BytesOf(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// Lets no file of this process grow beyond a size, which looks to it as a full disk does.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {bytes, before_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_;
  void (*handler_)(int);
};

TEST(SafetensorsWriterTest, WritesTheFormatByteForByte) {
  const TempFolder folder;
  WriteSafetensors(folder / "x.safetensors", {{"a", DType::kBFloat16, {1, 2}, "abcd"}, {"s", DType::kInt8, {}, "z"}},
                   {{"format", "pt"}});
  const std::string json = R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]},)"
                           R"("s":{"dtype":"I8","shape":[],"data_offsets":[4,5]}})";
  const std::string padded = json + std::string((8 - json.size() % 8) % 8, ' ');
  const std::string length = {static_cast<char>(padded.size()), 0, 0, 0, 0, 0, 0, 0};
  EXPECT_EQ(ReadWholeFile(folder / "x.safetensors"), length + padded + "abcdz");
}

TEST(SafetensorsWriterTest, WhatItWritesIsReadBack) {
  const TempFolder folder;
  const std::string name = "quote\" tab\t back slash-free \xc3\xa9\x01";
  WriteSafetensors(folder / "x.safetensors", {{name, DType::kFloat32, {2}}, {"empty", DType::kFloat16, {0, 5}}},
                   {{"k\n", "v\\\""}});
  const absl::StatusOr<std::unique_ptr<File>> file = File::Open(folder / "x.safetensors");
  ASSERT_THAT(file, IsOk());
  const absl::StatusOr<SafetensorsHeader> header = ReadSafetensorsHeader(**file);
  ASSERT_THAT(header, IsOk());
  ASSERT_EQ(header->tensors.size(), 2u);
  EXPECT_EQ(header->tensors[0].name, name);
  EXPECT_EQ(header->tensors[1].name, "empty");
  EXPECT_EQ(header->metadata.at("k\n"), "v\\\"");
}

TEST(SafetensorsWriterTest, DataMayComeInAnyPieces) {
  const TempFolder folder;
  const auto writer = SafetensorsWriter::Create(folder / "x.safetensors", Tensors{{"a", DType::kUint8, {6}}}, {});
  ASSERT_THAT(writer, IsOk());
  for (const char* const piece : {"a", "", "bcd", "ef"}) EXPECT_THAT((*writer)->Append(BytesOf(piece)), IsOk());
  EXPECT_THAT((*writer)->Finish(), IsOk());
  const std::string file = ReadWholeFile(folder / "x.safetensors");
  EXPECT_EQ(file.substr(file.size() - 6), "abcdef");
}

TEST(SafetensorsWriterTest, RefusesWhatTheReaderWouldRefuse) {
  const TempFolder folder;
  const auto create = [&](const Tensors& tensors) {
    return SafetensorsWriter::Create(folder / "x.safetensors", tensors, {}).status();
  };
  EXPECT_THAT(create({{"a", DType::kUint8, {1}}, {"a", DType::kUint8, {1}}}),
              StatusIs(kInvalid, "the key 'a' stands there twice"));
  EXPECT_THAT(create({{"a/b", DType::kUint8, {1}}}), StatusIs(kInvalid, "tensor 'a/b': its name"));
  EXPECT_THAT(create({{"__metadata__", DType::kUint8, {1}}}), StatusIs(kInvalid, "__metadata__"));
  EXPECT_THAT(create({{"\xff", DType::kUint8, {1}}}), StatusIs(kInvalid, "not JSON"));
  EXPECT_THAT(create({{"a", DType::kUint8, std::vector<int64_t>(9, 1)}}), StatusIs(kInvalid, "more than 8 entries"));
  EXPECT_THAT(create({{"a", DType::kUint8, {-1}}}), StatusIs(kInvalid, "tensor 'a': its shape is too large"));
  EXPECT_THAT(create({{"a", DType::kFloat32, {1ll << 61}}}), StatusIs(kInvalid, "tensor 'a': its shape is too large"));
  EXPECT_THAT(create({{"a", DType::kUint8, {1ll << 62}}, {"b", DType::kUint8, {1ll << 62}}}),
              StatusIs(kInvalid, "tensor 'b': its shape is too large"));
  EXPECT_FALSE(std::filesystem::exists(folder / "x.safetensors"));
}

TEST(SafetensorsWriterTest, RefusesMoreDataThanItAnnounced) {
  const TempFolder folder;
  const auto writer = SafetensorsWriter::Create(folder / "x.safetensors", Tensors{{"a", DType::kUint8, {2}}}, {});
  ASSERT_THAT(writer, IsOk());
  EXPECT_THAT((*writer)->Append(BytesOf("abc")),
              StatusIs(absl::StatusCode::kFailedPrecondition, "x.safetensors: more data than the header announces"));
}

TEST(SafetensorsWriterTest, DoesNotFinishWithLessDataThanItAnnounced) {
  const TempFolder folder;
  const auto writer = SafetensorsWriter::Create(folder / "x.safetensors", Tensors{{"a", DType::kUint8, {3}}}, {});
  ASSERT_THAT(writer, IsOk());
  ASSERT_THAT((*writer)->Append(BytesOf("a")), IsOk());
  EXPECT_THAT((*writer)->Finish(),
              StatusIs(absl::StatusCode::kFailedPrecondition, "x.safetensors: 2 bytes of data are missing"));
}

TEST(SafetensorsWriterTest, OverwritesNothing) {
  const TempFolder folder;
  WriteFile(folder / "x.safetensors", "precious");
  EXPECT_THAT(SafetensorsWriter::Create(folder / "x.safetensors", {}, {}),
              StatusIs(absl::StatusCode::kAlreadyExists, "x.safetensors: File exists"));
  EXPECT_EQ(ReadWholeFile(folder / "x.safetensors"), "precious");
}

TEST(SafetensorsWriterTest, NeedsTheFolder) {
  const TempFolder folder;
  const absl::Status status = SafetensorsWriter::Create(folder / "none/x.safetensors", {}, {}).status();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kNotFound, "x.safetensors: No such file"));
  EXPECT_THAT(std::string(status.message()), ::testing::Not(::testing::HasSubstr(folder.path())));
}

TEST(SafetensorsWriterTest, AFullDiskIsResourceExhausted) {
  const TempFolder folder;
  const auto writer = SafetensorsWriter::Create(folder / "x.safetensors", Tensors{{"a", DType::kUint8, {100'000}}}, {});
  ASSERT_THAT(writer, IsOk());
  const FileSizeLimit limit(4096);
  EXPECT_THAT((*writer)->Append(BytesOf(std::string(100'000, 'x'))),
              StatusIs(absl::StatusCode::kResourceExhausted, "x.safetensors: "));
}

}  // namespace
}  // namespace ditserve
