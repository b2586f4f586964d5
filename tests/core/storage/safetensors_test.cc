#include "core/storage/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/testing/faulty_file_calls.h"
#include "tests/testing/safetensors_fixture.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;
using ::testing::SizeIs;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

// Parses a header whose data begins at byte 0.
absl::StatusOr<SafetensorsHeader> Parse(absl::string_view json, int64_t data_bytes) {
  return ParseSafetensorsHeader(json, 0, data_bytes);
}

// The entry of a tensor of `bytes` bytes.
std::string Entry(absl::string_view name, int64_t begin, int64_t bytes) {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"U8\",\"shape\":[", bytes, "],\"data_offsets\":[", begin, ",",
                      begin + bytes, "]}");
}

std::string Repeated(absl::string_view text, int times) {
  std::string repeated;
  for (int i = 0; i < times; ++i) absl::StrAppend(&repeated, text);
  return repeated;
}

std::string FileOf(absl::string_view json, int64_t data_bytes) {
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(json.size() >> (8 * i) & 0xff));
  return absl::StrCat(file, json, std::string(static_cast<size_t>(data_bytes), 'x'));
}

absl::StatusOr<SafetensorsHeader> ReadHeader(const std::string& path) {
  absl::StatusOr<std::unique_ptr<File>> file = File::Open(path);
  if (!file.ok()) return file.status();
  return ReadSafetensorsHeader(**file);
}

TEST(SafetensorsTest, TellsWhereEachTensorStands) {
  const TempFolder folder;
  const std::string json = absl::StrCat("{", Entry("b", 3, 4), ",", Entry("a", 0, 3), "}");
  WriteFile(folder / "x.safetensors", FileOf(json, 7));
  const absl::StatusOr<SafetensorsHeader> header = ReadHeader(folder / "x.safetensors");
  ASSERT_THAT(header, IsOk());
  ASSERT_THAT(header->tensors, SizeIs(2));
  const TensorEntry& b = header->tensors[1];
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.dtype, DType::kUint8);
  EXPECT_THAT(b.shape, ElementsAre(4));
  EXPECT_EQ(b.offset_bytes, 8 + static_cast<int64_t>(json.size()) + 3);
  EXPECT_EQ(b.size_bytes, 4);
}

TEST(SafetensorsTest, ReadsEveryDType) {
  for (int i = 0; i <= static_cast<int>(DType::kFloat64); ++i) {
    const DType dtype = static_cast<DType>(i);
    const int64_t bytes = 6 * SizeOf(dtype);
    const absl::StatusOr<SafetensorsHeader> header =
        Parse(absl::StrCat("{\"t\":{\"dtype\":\"", SafetensorsName(dtype), "\",\"shape\":[2,3],\"data_offsets\":[0,",
                           bytes, "]}}"),
              bytes);
    ASSERT_THAT(header, IsOk());
    EXPECT_EQ(header->tensors[0].dtype, dtype);
    EXPECT_EQ(header->tensors[0].size_bytes, bytes);
  }
}

TEST(SafetensorsTest, AcceptsWhatTheFormatAllows) {
  EXPECT_THAT(Parse("{}", 0), IsOk());
  EXPECT_THAT(Parse(" {}", 0), StatusIs(kInvalid, "does not begin with '{'"));
  EXPECT_THAT(Parse("{} \n\t   ", 0), IsOk());
  EXPECT_THAT(Parse(R"({"__metadata__":null})", 0), IsOk());
  EXPECT_THAT(Parse(R"({"scalar":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4), IsOk());
  EXPECT_THAT(Parse(R"({"empty":{"dtype":"F32","shape":[3,0],"data_offsets":[0,0]}})", 0), IsOk());
  EXPECT_THAT(Parse(R"({"rank 8":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", 1), IsOk());
  EXPECT_THAT(Parse(R"({"\u00e9..":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1), IsOk());
}

TEST(SafetensorsTest, EmptyTensorsMayStandAnywhere) {
  const std::string json = absl::StrCat("{", Entry("a", 0, 3), ",", Entry("first", 0, 0), ",", Entry("b", 3, 2), ",",
                                        Entry("between", 3, 0), ",", Entry("last", 5, 0), "}");
  const absl::StatusOr<SafetensorsHeader> header = Parse(json, 5);
  ASSERT_THAT(header, IsOk());
  EXPECT_THAT(header->tensors, SizeIs(5));
}

TEST(SafetensorsTest, UnknownFieldsMayHoldAnything) {
  for (const char* const value : {"1", "-1.5", "null", "true", "\"text\"", "[[1,{}],\"\"]", R"({"shape":["a"]})"}) {
    EXPECT_THAT(
        Parse(absl::StrCat(R"({"t":{"dtype":"U8","note":)", value, R"(,"shape":[1],"data_offsets":[0,1]}})"), 1),
        IsOk())
        << value;
  }
}

TEST(SafetensorsTest, KeepsTheMetadata) {
  const absl::StatusOr<SafetensorsHeader> header = Parse(R"({"__metadata__":{"format":"pt","a":""}})", 0);
  ASSERT_THAT(header, IsOk());
  EXPECT_THAT(header->metadata, ElementsAre(Pair("a", ""), Pair("format", "pt")));
}

struct Refusal {
  std::string json;
  int64_t data_bytes;
  std::string message;
};

void ExpectRefused(const std::vector<Refusal>& refusals) {
  for (const Refusal& refusal : refusals) {
    EXPECT_THAT(Parse(refusal.json, refusal.data_bytes), StatusIs(kInvalid, refusal.message))
        << refusal.json.substr(0, 200);
  }
}

TEST(SafetensorsTest, RefusesWhatIsNotOneJsonObject) {
  ExpectRefused({{"", 0, "does not begin with '{'"},
                 Refusal{"[]", 0, "does not begin with '{'"},
                 {"\xef\xbb\xbf{}", 0, "does not begin with '{'"},
                 Refusal{"{", 0, "not JSON at byte"},
                 {"{}{}", 0, "not JSON at byte"},
                 Refusal{"{} x", 0, "not JSON at byte"},
                 {"{/**/}", 0, "not JSON at byte"},
                 Refusal{std::string("{}\0", 3), 0, "a NUL at byte 2"},
                 {"{\"\xff\":null}", 0, "not JSON at byte"},
                 Refusal{"{\"\xc0\xaf\":null}", 0, "not JSON at byte"},
                 {R"({"\ud800":null})", 0, "not JSON at byte"},
                 {absl::StrCat("{", Entry("a", 0, 1), ",", Entry("a", 1, 1), "}"), 2, "the key 'a' stands there twice"},
                 {R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1,
                  "the key 'a.dtype' stands there twice"},
                 {R"({"__metadata__":{"a":"","a":""}})", 0, "the key '__metadata__.a' stands there twice"},
                 {absl::StrCat(R"({"a":{"x":)", Repeated("[", 100000)), 0, "nested more than 32 levels"},
                 {absl::StrCat(R"({"a":)", Repeated(R"({"x":)", 50000)), 0, "nested more than 32 levels"}});
}

TEST(SafetensorsTest, RefusesMalformedEntries) {
  ExpectRefused(
      {{R"({"a":1})", 0, "tensor 'a': its entry must be an object"},
       {R"({"a":null})", 0, "tensor 'a': its entry must be an object"},
       {absl::StrCat("{", Entry("a", 0, 1), R"(,"b":[1]})"), 1, "tensor 'b': its entry must be an object"},
       {R"({"__metadata__":[]})", 0, "tensor '__metadata__': its entry must be an object"},
       {R"({"__metadata__":{"a":1}})", 0, "__metadata__: the value of 'a' must be a string"},
       {R"({"__metadata__":{"a":{}}})", 0, "__metadata__: the value of 'a' must be a string"},
       {R"({"a":{}})", 0, "tensor 'a': dtype, shape and data_offsets are needed"},
       {R"({"a":{"dtype":"U8","shape":[0]}})", 0, "tensor 'a': dtype, shape and data_offsets are needed"},
       {R"({"a":{"dtype":"U8","data_offsets":[0,0]}})", 0, "dtype, shape and data_offsets are needed"},
       {R"({"a":{"shape":[0],"data_offsets":[0,0]}})", 0, "dtype, shape and data_offsets are needed"},
       {R"({"a":{"dtype":3,"shape":[0],"data_offsets":[0,0]}})", 0, "tensor 'a': dtype must be a string"},
       {R"({"a":{"dtype":["U8"],"shape":[0],"data_offsets":[0,0]}})", 0, "dtype must be a string"},
       {R"({"a":{"dtype":"U9","shape":[0],"data_offsets":[0,0]}})", 0, "tensor 'a': unknown dtype 'U9'"},
       {absl::StrCat("{", Entry("", 0, 1), "}"), 1, "tensor '': its name is empty"},
       {absl::StrCat("{", Entry("..", 0, 1), "}"), 1, "tensor '..': its name is empty or has a NUL or a path"},
       {absl::StrCat("{", Entry("a/b", 0, 1), "}"), 1, "tensor 'a/b': its name"},
       {absl::StrCat("{", Entry("a\\\\b", 0, 1), "}"), 1, "its name is empty or has a NUL or a path part"},
       {absl::StrCat("{", Entry("a\\u0000b", 0, 1), "}"), 1, "tensor 'a\\x00\\x62': its name"}});
}

std::string WithShape(absl::string_view shape) {
  return absl::StrCat(R"({"a":{"dtype":"F32","shape":)", shape, R"(,"data_offsets":[0,4]}})");
}
std::string WithOffsets(absl::string_view offsets) {
  return absl::StrCat(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)", offsets, "}}");
}

TEST(SafetensorsTest, RefusesShapesThatAreNone) {
  ExpectRefused({{WithShape("1"), 4, "tensor 'a': shape must be an array"},
                 {WithShape("{}"), 4, "tensor 'a': shape must be an array"},
                 {WithShape("[-1]"), 4, "tensor 'a': shape must hold integers from 0 to 2^63 - 1"},
                 {WithShape("[-0]"), 4, "shape must hold integers"},
                 {WithShape("[1.0]"), 4, "shape must hold integers"},
                 {WithShape("[1e0]"), 4, "shape must hold integers"},
                 {WithShape("[true]"), 4, "shape must hold integers"},
                 {WithShape("[\"1\"]"), 4, "shape must hold integers"},
                 {WithShape("[[1]]"), 4, "shape must hold integers"},
                 {WithShape("[9223372036854775808]"), 4, "shape must hold integers"},
                 {WithShape("[99999999999999999999]"), 4, "shape must hold integers"},
                 {WithShape("[9223372036854775807]"), 4, "its shape takes more than 2^63 - 1 bytes"},
                 {WithShape("[4294967296,4294967296]"), 4, "its shape takes more than 2^63 - 1 bytes"},
                 {WithShape("[4294967296,4294967296,0]"), 4, "takes more than 2^63 - 1 bytes"},
                 {WithShape("[1,1,1,1,1,1,1,1,1]"), 4, "tensor 'a': shape has more than 8 entries"},
                 {WithShape("[2]"), 4, "tensor 'a': data_offsets span 4 bytes, dtype and shape take 8"},
                 {WithShape("[0]"), 4, "tensor 'a': data_offsets span 4 bytes, dtype and shape take 0"}});
}

TEST(SafetensorsTest, RefusesDataWithGapsAndOverlaps) {
  ExpectRefused({{WithOffsets("4"), 4, "tensor 'a': data_offsets must be an array"},
                 {WithOffsets("[]"), 4, "tensor 'a': data_offsets must be [begin, end] with begin <= end"},
                 {WithOffsets("[0]"), 4, "data_offsets must be [begin, end]"},
                 {WithOffsets("[0,4,4]"), 4, "data_offsets must be [begin, end]"},
                 {WithOffsets("[4,0]"), 4, "data_offsets must be [begin, end]"},
                 {WithOffsets("[0,4.0]"), 4, "data_offsets must hold integers from 0 to 2^63 - 1"},
                 {WithOffsets("[-4,0]"), 4, "data_offsets must hold integers"},
                 {WithOffsets("[1,5]"), 5, "tensor 'a': a gap before its data: it begins at byte 1"},
                 {WithOffsets("[9223372036854775803,9223372036854775807]"), 4, "tensor 'a': a gap before its data"},
                 {WithOffsets("[0,4]"), 3, "tensor 'a': its 4 bytes from byte 0 on exceed the file's 3"},
                 {WithOffsets("[0,4]"), 5, "the tensors end at byte 4, the file has 5"},
                 {"{}", 1, "the tensors end at byte 0, the file has 1"},
                 {absl::StrCat("{", Entry("a", 0, 3), ",", Entry("b", 4, 1), "}"), 5, "tensor 'b': a gap before"},
                 {absl::StrCat("{", Entry("a", 0, 3), ",", Entry("b", 2, 3), "}"), 5, "tensor 'b': an overlap before"},
                 {absl::StrCat("{", Entry("a", 0, 3), ",", Entry("b", 0, 3), "}"), 3, "an overlap before its data"},
                 {absl::StrCat("{", Entry("a", 0, 3), ",", Entry("b", 1, 0), "}"), 3, "an overlap before its data"}});
}

TEST(SafetensorsTest, OffsetsThatOverflowWithTheHeaderAreRefused) {
  EXPECT_THAT(ParseSafetensorsHeader(WithOffsets("[9223372036854775803,9223372036854775807]"), 100, 200),
              StatusIs(kInvalid, "tensor 'a': data_offsets lie outside of the file"));
}

TEST(SafetensorsTest, LongNamesAreShownShort) {
  const absl::StatusOr<SafetensorsHeader> header = Parse(absl::StrCat("{\"", std::string(100000, 'n'), "\":1}"), 0);
  EXPECT_THAT(header, StatusIs(kInvalid, "nnn...': its entry must be an object"));
  EXPECT_LT(header.status().message().size(), 300u);
}

TEST(SafetensorsTest, AHeaderLengthBeyondTheFileIsRefusedBeforeItIsRead) {
  const TempFolder folder;
  const std::string path = folder / "x.safetensors";
  WriteFile(path, "1234567");
  EXPECT_THAT(ReadHeader(path), StatusIs(kInvalid, "x.safetensors: not a valid safetensors file: shorter than 8"));
  for (const uint64_t length : {3ull, 1ull << 31, 1ull << 63, ~0ull}) {
    std::string file(reinterpret_cast<const char*>(&length), 8);
    WriteFile(path, absl::StrCat(file, "{}"));
    EXPECT_THAT(ReadHeader(path), StatusIs(kInvalid, absl::StrCat("x.safetensors: not a valid safetensors file: it "
                                                                  "announces a header of ",
                                                                  length, " bytes; the file has 10")));
  }
}

TEST(SafetensorsTest, AHeaderOfMoreThanAHundredMillionBytesIsRefusedBeforeItIsRead) {
  const TempFolder folder;
  const std::string path = folder / "x.safetensors";
  const uint64_t length = 100'000'001;
  WriteFile(path, absl::StrCat(absl::string_view(reinterpret_cast<const char*>(&length), 8), "{}"));
  std::filesystem::resize_file(path, 200'000'000);
  FaultyFileCalls calls;
  const absl::StatusOr<std::unique_ptr<File>> file = File::Open(path, calls);
  ASSERT_THAT(file, IsOk());
  EXPECT_THAT(ReadSafetensorsHeader(**file), StatusIs(kInvalid, "at most 100000000 are read"));
  EXPECT_LE(calls.bytes_read(), 8192);
}

TEST(SafetensorsTest, TruncationAnywhereIsNoticed) {
  const TempFolder folder;
  std::vector<FixtureTensor> tensors;
  for (int i = 0; i < 20; ++i) tensors.push_back({absl::StrCat("layer.", i, ".weight"), DType::kBFloat16, {3, i}});
  WriteSafetensors(folder / "whole.safetensors", tensors, {{"format", "pt"}});
  ASSERT_THAT(ReadHeader(folder / "whole.safetensors"), IsOk());
  const std::string whole = ReadWholeFile(folder / "whole.safetensors");
  ASSERT_GT(whole.size(), 1000u);
  for (size_t i = 0; i < 1000; ++i) {
    WriteFile(folder / "cut.safetensors", whole.substr(0, whole.size() * i / 1000));
    ASSERT_THAT(ReadHeader(folder / "cut.safetensors"), StatusIs(kInvalid, "cut.safetensors: not a valid")) << i;
  }
  WriteFile(folder / "long.safetensors", absl::StrCat(whole, "x"));
  EXPECT_THAT(ReadHeader(folder / "long.safetensors"), StatusIs(kInvalid, "the tensors end at byte"));
}

// What the parser lets through must be safe to read by.
void CheckSound(const SafetensorsHeader& header, int64_t data_begin, int64_t file_bytes) {
  int64_t end = data_begin;
  for (const TensorEntry& tensor : header.tensors) {
    ASSERT_EQ(tensor.offset_bytes, end);
    ASSERT_EQ(TensorBytes(tensor.shape, tensor.dtype), tensor.size_bytes);
    end += tensor.size_bytes;
  }
  ASSERT_EQ(end, file_bytes);
}

TEST(SafetensorsTest, WhatRandomChangesLeaveValidIsSound) {
  const std::string json = absl::StrCat(R"({"__metadata__":{"format":"pt"},)", Entry("a", 0, 30), ",",
                                        Entry("b", 30, 12), ",", Entry("c", 42, 0), "}");
  std::mt19937 random(7);
  const auto below = [&](size_t limit) { return random() % limit; };
  int accepted = 0;
  for (int i = 0; i < 50'000; ++i) {
    std::string changed = json;
    for (size_t n = below(3) + 1; n > 0; --n) {
      const size_t at = below(changed.size());
      switch (below(3)) {
        case 0:
          changed[at] = static_cast<char>(below(256));
          break;
        case 1:
          changed.erase(at, below(4));
          break;
        default:
          changed.insert(at, 1, "0123456789{}[],:\"-."[below(19)]);
      }
      if (changed.empty()) changed.push_back('{');
    }
    const absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(changed, 8, 50);
    if (header.ok()) {
      CheckSound(*header, 8, 50);
      ++accepted;
    } else {
      ASSERT_THAT(header, StatusIs(kInvalid, ""));
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST(SafetensorsTest, RandomBytesAreRefused) {
  std::mt19937 random(11);
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes(1 + random() % 100, '{');
    for (size_t k = i % 2; k < bytes.size(); ++k) bytes[k] = static_cast<char>(random());
    ASSERT_THAT(Parse(bytes, 1), StatusIs(kInvalid, ""));
  }
}

TEST(SafetensorsTest, AFailingDiskIsUnavailableAndNamesTheFile) {
  const TempFolder folder;
  WriteSafetensors(folder / "x.safetensors", {{"a", DType::kBFloat16, {4}}});
  FaultyFileCalls calls;
  const absl::StatusOr<std::unique_ptr<File>> file = File::Open(folder / "x.safetensors", calls);
  ASSERT_THAT(file, IsOk());
  calls.FailReads(1000, EIO);
  EXPECT_THAT(ReadSafetensorsHeader(**file),
              StatusIs(absl::StatusCode::kUnavailable, "x.safetensors: Input/output error"));
}

}  // namespace
}  // namespace ditserve
