#include "core/storage/checkpoint.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <map>
#include <new>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/base/status_macros.h"
#include "core/storage/checkpoint_files.h"
#include "tests/testing/faulty_file_calls.h"
#include "tests/testing/safetensors_fixture.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr absl::StatusCode kDataLoss = absl::StatusCode::kDataLoss;
constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kNotFound = absl::StatusCode::kNotFound;

std::string IndexOf(const std::map<std::string, std::string>& weight_map) {
  const auto entry = [](std::string* out, const auto& e) {
    absl::StrAppend(out, "\"", e.first, "\":\"", e.second, "\"");
  };
  return absl::StrCat(R"({"metadata":{"total_size":1},"weight_map":{)", absl::StrJoin(weight_map, ",", entry), "}}");
}

std::string ShardName(int i, int n) { return absl::StrFormat("model-%05d-of-%05d.safetensors", i, n); }

class CheckpointTest : public ::testing::Test {
 protected:
  // Shards 1 to n of n, the i-th holding tensor "t<i>".
  void WriteShards(int n) {
    for (int i = 1; i <= n; ++i) {
      WriteSafetensors(folder_ / ShardName(i, n), {{absl::StrCat("t", i), DType::kBFloat16, {i, 3}}});
    }
  }
  void WriteIndex(const std::map<std::string, std::string>& weight_map) {
    WriteFile(folder_ / "model.safetensors.index.json", IndexOf(weight_map));
  }
  // Dates the file back so that any write to it shows.
  void Age(const std::string& name) {
    const struct timespec long_ago[2] = {{1'000'000'000, 0}, {1'000'000'000, 0}};
    ASSERT_EQ(utimensat(AT_FDCWD, (folder_ / name).c_str(), long_ago, 0), 0);
  }
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& name = "") {
    return Checkpoint::Open(name.empty() ? folder_.path() : folder_ / name, calls_);
  }
  static std::vector<std::string> NamesOf(const Checkpoint& checkpoint) {
    std::vector<std::string> names;
    for (const StoredTensor& tensor : checkpoint.tensors()) names.push_back(tensor.name);
    return names;
  }
  static absl::StatusOr<std::string> Read(const Checkpoint& checkpoint, const std::string& name, int64_t begin = 0,
                                          int64_t size = -1) {
    const StoredTensor& tensor = *checkpoint.Find(name);
    if (size < 0) size = tensor.size_bytes - begin;
    const size_t slot_bytes = static_cast<size_t>(size + 2 * Checkpoint::kReadAlignment);
    const std::align_val_t alignment{Checkpoint::kReadAlignment};
    const auto free = [&](std::byte* data) { ::operator delete(data, alignment); };
    const std::unique_ptr<std::byte, decltype(free)> slot(
        static_cast<std::byte*>(::operator new(slot_bytes, alignment)), free);
    DITSERVE_ASSIGN_OR_RETURN(const absl::Span<const std::byte> read,
                              checkpoint.Read(tensor, begin, size, {slot.get(), slot_bytes}));
    return std::string(reinterpret_cast<const char*>(read.data()), read.size());
  }

  const TempFolder folder_;
  FaultyFileCalls calls_;
};

TEST_F(CheckpointTest, OpensOneFile) {
  WriteSafetensors(folder_ / "x.safetensors", {{"b", DType::kBFloat16, {2, 3}}, {"a", DType::kFloat32, {}}});
  const auto checkpoint = Open("x.safetensors");
  ASSERT_THAT(checkpoint, IsOk());
  EXPECT_THAT(NamesOf(**checkpoint), ElementsAre("a", "b"));
  EXPECT_EQ((*checkpoint)->size_bytes(), 16);
  EXPECT_EQ((*checkpoint)->shard_name(0), "x.safetensors");
  EXPECT_EQ((*checkpoint)->config_json(), "");
  const StoredTensor* const b = (*checkpoint)->Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, DType::kBFloat16);
  EXPECT_THAT(b->shape, ElementsAre(2, 3));
  EXPECT_EQ((*checkpoint)->Find("c"), nullptr);
}

TEST_F(CheckpointTest, OpensAFolderWithAnIndex) {
  WriteShards(2);
  WriteIndex({{"t1", ShardName(1, 2)}, {"t2", ShardName(2, 2)}});
  WriteFile(folder_ / "config.json", R"({"num_layers":60})");
  WriteSafetensors(folder_ / "unrelated.safetensors", {{"t1", DType::kBFloat16, {1}}});
  const auto checkpoint = Open();
  ASSERT_THAT(checkpoint, IsOk());
  EXPECT_THAT(NamesOf(**checkpoint), ElementsAre("t1", "t2"));
  EXPECT_EQ((*checkpoint)->config_json(), R"({"num_layers":60})");
  EXPECT_EQ((*checkpoint)->shard_name((*checkpoint)->Find("t2")->shard), ShardName(2, 2));
}

TEST_F(CheckpointTest, OpensAFolderWithASingleFile) {
  WriteSafetensors(folder_ / "x.safetensors", {{"a", DType::kBFloat16, {2}}});
  WriteFile(folder_ / "README.md", "");
  EXPECT_THAT(Open(), IsOk());
}

TEST_F(CheckpointTest, OpensARangeOfShards) {
  WriteShards(12);
  const auto checkpoint = Open("model-000{01-12}-of-00012.safetensors");
  ASSERT_THAT(checkpoint, IsOk());
  EXPECT_EQ((*checkpoint)->tensors().size(), 12u);
}

TEST_F(CheckpointTest, ARangeKeepsThePaddingOutsideTheBraces) {
  WriteShards(3);
  EXPECT_THAT(Open("model-0000{1-3}-of-00003.safetensors"), IsOk());
}

TEST_F(CheckpointTest, OpensByWildcardInOrder) {
  WriteShards(11);
  WriteFile(folder_ / "config.json", "{}");
  const auto checkpoint = Open("model-*.safetensors");
  ASSERT_THAT(checkpoint, IsOk());
  for (int i = 0; i < 11; ++i) EXPECT_EQ((*checkpoint)->shard_name(i), ShardName(i + 1, 11));
  EXPECT_EQ((*checkpoint)->config_json(), "{}");
}

TEST_F(CheckpointTest, OpeningReadsHeadersOnly) {
  const std::string path = folder_ / "x.safetensors";
  const auto writer = SafetensorsWriter::Create(path, {{"big", DType::kBFloat16, {20, 1024, 1024, 1024}}}, {});
  ASSERT_THAT(writer, IsOk());
  const int64_t header_bytes = static_cast<int64_t>(std::filesystem::file_size(path));
  std::filesystem::resize_file(path, static_cast<uintmax_t>(header_bytes + (40ll << 30)));  // Sparse.
  const auto checkpoint = Open();
  ASSERT_THAT(checkpoint, IsOk());
  EXPECT_EQ((*checkpoint)->size_bytes(), 40ll << 30);
  EXPECT_LE(calls_.bytes_read(), header_bytes + Checkpoint::kReadAlignment);
  EXPECT_EQ(*Read(**checkpoint, "big", (40ll << 30) - 3, 3), std::string(3, '\0'));
}

TEST_F(CheckpointTest, ReadsAnyPieceOfATensor) {
  const FixtureTensor odd = {"odd", DType::kFloat8E4M3, {13}}, big = {"big", DType::kFloat32, {50, 100}};
  WriteSafetensors(folder_ / "x.safetensors", {odd, big, {"empty", DType::kFloat32, {0}}});
  const auto checkpoint = Open();
  ASSERT_THAT(checkpoint, IsOk());
  EXPECT_EQ(*Read(**checkpoint, "odd"), DataOf(odd));
  EXPECT_EQ(*Read(**checkpoint, "big"), DataOf(big));
  EXPECT_EQ(*Read(**checkpoint, "big", 4097, 9000), DataOf(big).substr(4097, 9000));
  EXPECT_EQ(*Read(**checkpoint, "empty"), "");
}

// --- what is not there

TEST_F(CheckpointTest, WhatIsNotThereIsNotFound) {
  EXPECT_THAT(Open("none"), StatusIs(kNotFound, "none: No such file or directory"));
  EXPECT_THAT(Open("none.safetensors"), StatusIs(kNotFound, "none.safetensors: No such file"));
  EXPECT_THAT(Open("x-*.safetensors"), StatusIs(kNotFound, "no file matches 'x-*.safetensors'"));
  EXPECT_THAT(Open("none/x-*.safetensors"), StatusIs(kNotFound, "the checkpoint's folder does not exist"));
}

TEST_F(CheckpointTest, NoMessageTellsTheFolder) {
  for (const char* const name : {"none", "x-*.safetensors", "none/*", "x-{1-2}.safetensors", "x-{2-1}.safetensors"}) {
    EXPECT_THAT(std::string(Open(name).status().message()), Not(HasSubstr(folder_.path()))) << name;
  }
}

TEST_F(CheckpointTest, AFolderWithoutACheckpointSaysWhatWasLookedFor) {
  EXPECT_THAT(Open(), StatusIs(kInvalid,
                               "a checkpoint folder holds one *.safetensors.index.json with its shards, or one "
                               "*.safetensors file; found 0 indices and 0 .safetensors files"));
}

TEST_F(CheckpointTest, AFolderMustBeUnambiguous) {
  WriteShards(2);
  EXPECT_THAT(Open(), StatusIs(kInvalid, "found 0 indices and 2 .safetensors files"));
  WriteFile(folder_ / "a.safetensors.index.json", IndexOf({}));
  WriteFile(folder_ / "b.safetensors.index.json", IndexOf({}));
  EXPECT_THAT(Open(), StatusIs(kInvalid, "found 2 indices"));
}

TEST_F(CheckpointTest, PickleIsRefusedWithTheReason) {
  for (const char* const name : {"model.bin", "model.pt", "model.pth", "MODEL.CKPT", "model-*.bin", "m-{1-2}.bin"}) {
    EXPECT_THAT(Open(name), StatusIs(kInvalid, absl::StrCat(name,
                                                            " is a pickle checkpoint; checkpoints are "
                                                            ".safetensors only: it can be read in place and "
                                                            "runs no code")));
  }
  WriteFile(folder_ / "pytorch_model.bin", "");
  EXPECT_THAT(Open(), StatusIs(kInvalid, "pytorch_model.bin is a pickle checkpoint"));
  EXPECT_THAT(Open("pytorch*"), StatusIs(kInvalid, "pytorch_model.bin is a pickle checkpoint"));
}

TEST_F(CheckpointTest, AMissingShardOfARangeIsNamed) {
  WriteShards(3);
  std::filesystem::remove(folder_ / ShardName(2, 3));
  EXPECT_THAT(Open("model-0000{1-3}-of-00003.safetensors"), StatusIs(kNotFound, ShardName(2, 3)));
}

TEST_F(CheckpointTest, ARangeMustBeTheWholeSet) {
  WriteShards(3);
  EXPECT_THAT(Open("model-0000{1-2}-of-00003.safetensors"), StatusIs(kInvalid, "shard 3 of 3 is missing"));
}

TEST_F(CheckpointTest, ARangeMayEndWithTheLargestNumber) {
  EXPECT_THAT(Open("model-{2147483647-2147483647}.safetensors"), StatusIs(kNotFound, "model-2147483647.safetensors"));
}

TEST_F(CheckpointTest, WhatAWildcardFindsMustBeTheWholeSet) {
  WriteShards(3);
  std::filesystem::remove(folder_ / ShardName(1, 3));
  EXPECT_THAT(Open("model-*.safetensors"), StatusIs(kInvalid, "shard 1 of 3 is missing"));
}

TEST_F(CheckpointTest, ARangeMustBeOne) {
  for (const char* const range : {"", "1", "2-1", "a-b", "1-", "-2", "1-2-3", "+1-2", "1-99999999999", "0-10000"}) {
    EXPECT_THAT(Open(absl::StrCat("x-{", range, "}.safetensors")),
                StatusIs(kInvalid, absl::StrCat("'{", range, "}' is no range of shards such as {1-9}")))
        << range;
  }
}

// --- what the index says

TEST_F(CheckpointTest, AShardThatTheIndexNamesMustExist) {
  WriteShards(1);
  WriteIndex({{"t1", ShardName(1, 1)}, {"t2", "gone.safetensors"}});
  EXPECT_THAT(Open(), StatusIs(kNotFound, "gone.safetensors: No such file"));
}

TEST_F(CheckpointTest, ATensorThatTheIndexNamesMustBeInItsShard) {
  WriteShards(1);
  WriteIndex({{"t1", ShardName(1, 1)}, {"t2", ShardName(1, 1)}});
  EXPECT_THAT(Open(), StatusIs(kInvalid,
                               "tensor 't2' is missing from model-00001-of-00001.safetensors, where "
                               "model.safetensors.index.json places it"));
}

TEST_F(CheckpointTest, ATensorOfAShardMustBeInTheIndex) {
  WriteSafetensors(folder_ / "x.safetensors", {{"a", DType::kBFloat16, {1}}, {"b", DType::kBFloat16, {1}}});
  WriteIndex({{"a", "x.safetensors"}});
  EXPECT_THAT(Open(), StatusIs(kInvalid, "tensor 'b' in x.safetensors is not in model.safetensors.index.json"));
}

TEST_F(CheckpointTest, ATensorMustBeWhereTheIndexPlacesIt) {
  WriteShards(2);
  WriteIndex({{"t1", ShardName(2, 2)}, {"t2", ShardName(1, 2)}});
  EXPECT_THAT(Open(), StatusIs(kInvalid,
                               "tensor 't1' is in model-00001-of-00002.safetensors, but model.safetensors.index.json "
                               "places it in model-00002-of-00002.safetensors"));
}

TEST_F(CheckpointTest, ShardNamesMustNotLeaveTheFolder) {
  for (const char* const name : {"", ".", "..", "../x.safetensors", "/x.safetensors", "a/x.safetensors",
                                 "a\\\\x.safetensors", "x\\u0000.safetensors"}) {
    WriteIndex({{"t1", name}});
    EXPECT_THAT(Open(), StatusIs(kInvalid,
                                 "model.safetensors.index.json: tensor 't1': its shard must be the name of "
                                 "a file in the same folder"))
        << name;
  }
}

TEST_F(CheckpointTest, AnIndexOfPickleShardsIsRefused) {
  WriteIndex({{"t1", "model.bin"}});
  EXPECT_THAT(Open(), StatusIs(kInvalid, "model.bin is a pickle checkpoint"));
}

TEST_F(CheckpointTest, AMalformedIndexIsRefused) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "not JSON at byte"},
      {"[]", "expected an object with an object 'weight_map'"},
      {"{}", "expected an object with an object 'weight_map'"},
      {R"({"metadata":{"weight_map":{"a":"b"}}})", "expected an object with an object 'weight_map'"},
      {R"({"weight_map":[]})", "weight_map must be an object"},
      {R"({"weight_map":{"a":1}})", "tensor 'a': its shard must be the name"},
      {R"({"weight_map":{"a":{"b":"c"}}})", "tensor 'a': its shard must be the name"},
      {R"({"weight_map":{"a":"x","a":"y"}})", "the key 'weight_map.a' stands there twice"},
      {R"({"weight_map":{"a":"x"}} {})", "not JSON at byte"},
  };
  for (const auto& [text, message] : cases) {
    EXPECT_THAT(ParseCheckpointIndex(text), StatusIs(kInvalid, message)) << text;
  }
}

TEST_F(CheckpointTest, AGiantIndexIsNotRead) {
  WriteFile(folder_ / "model.safetensors.index.json", "{}");
  std::filesystem::resize_file(folder_ / "model.safetensors.index.json", (64 << 20) + 1);
  EXPECT_THAT(Open(), StatusIs(kInvalid, "model.safetensors.index.json: 67108865 bytes long, at most 67108864"));
}

TEST_F(CheckpointTest, AGiantConfigIsNotRead) {
  WriteSafetensors(folder_ / "x.safetensors", {{"a", DType::kBFloat16, {1}}});
  WriteFile(folder_ / "config.json", "{}");
  std::filesystem::resize_file(folder_ / "config.json", (1 << 20) + 1);
  EXPECT_THAT(Open(), StatusIs(kInvalid, "config.json: 1048577 bytes long, at most 1048576"));
}

TEST_F(CheckpointTest, AConfigThatIsEmptyOrLeadsNowhereIsNotTakenForNone) {
  WriteSafetensors(folder_ / "model.safetensors", {{"t", DType::kBFloat16, {1}}});
  WriteFile(folder_ / "config.json", "");
  EXPECT_THAT(Open(), StatusIs(kInvalid, "config.json: empty"));
  std::filesystem::remove(folder_ / "config.json");
  std::filesystem::create_symlink("nowhere", folder_ / "config.json");
  EXPECT_THAT(Open(), StatusIs(kNotFound, "config.json: "));
}

// --- what the shards hold

TEST_F(CheckpointTest, ATensorInTwoShardsIsRefused) {
  WriteSafetensors(folder_ / "a.safetensors", {{"same", DType::kBFloat16, {1}}});
  WriteSafetensors(folder_ / "b.safetensors", {{"same", DType::kBFloat16, {1}}});
  EXPECT_THAT(Open("*.safetensors"), StatusIs(kInvalid, "tensor 'same' is both in "));
}

TEST_F(CheckpointTest, OnlyWeightDTypesAreAccepted) {
  for (int i = 0; i <= static_cast<int>(DType::kFloat64); ++i) {
    const DType dtype = static_cast<DType>(i);
    const std::string name = absl::StrCat(Name(dtype), ".safetensors");
    WriteSafetensors(folder_ / name, {{"t", dtype, {2}}});
    if (IsWeightDType(dtype)) {
      EXPECT_THAT(Open(name), IsOk());
    } else {
      EXPECT_THAT(Open(name), StatusIs(kInvalid, absl::StrCat("tensor 't' in ", name, " is ", SafetensorsName(dtype),
                                                              "; weights are BF16, F16, F32 or F8_E4M3")));
    }
  }
}

TEST_F(CheckpointTest, ACheckpointHasTensors) {
  WriteSafetensors(folder_ / "x.safetensors", {});
  EXPECT_THAT(Open(), StatusIs(kInvalid, "the checkpoint has no tensors"));
}

TEST_F(CheckpointTest, ADamagedShardIsNamed) {
  WriteFile(folder_ / "x.safetensors", "not a safetensors file");
  EXPECT_THAT(Open(), StatusIs(kInvalid, "x.safetensors: not a valid safetensors file: it announces a header of"));
}

// --- what happens to it later

class OpenCheckpointTest : public CheckpointTest {
 protected:
  OpenCheckpointTest() {
    WriteShards(2);
    Age(ShardName(1, 2));
    Age(ShardName(2, 2));
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Open("model-*.safetensors");
    EXPECT_THAT(checkpoint, IsOk());
    checkpoint_ = *std::move(checkpoint);
  }
  void ExpectOnlyTheFirstIsLost(absl::string_view what) {
    EXPECT_THAT(Read(*checkpoint_, "t1"),
                StatusIs(kDataLoss, absl::StrCat("reading tensor 't1': ", ShardName(1, 2), ": the file was ", what)));
    EXPECT_THAT(Read(*checkpoint_, "t2"), IsOk());
  }
  const std::string shard_ = folder_ / ShardName(1, 2);
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_F(OpenCheckpointTest, ATruncatedShardIsDataLoss) {
  std::filesystem::resize_file(shard_, 20);
  ExpectOnlyTheFirstIsLost("cut or extended");
}

TEST_F(OpenCheckpointTest, AnUnlinkedShardIsDataLoss) {
  std::filesystem::remove(shard_);
  ExpectOnlyTheFirstIsLost("removed or replaced");
}

TEST_F(OpenCheckpointTest, AReplacedShardIsDataLoss) {
  std::filesystem::copy_file(shard_, folder_ / "new");
  std::filesystem::rename(folder_ / "new", shard_);
  ExpectOnlyTheFirstIsLost("removed or replaced");
}

TEST_F(OpenCheckpointTest, ARewrittenShardIsDataLoss) {
  WriteFile(shard_, ReadWholeFile(shard_));
  ExpectOnlyTheFirstIsLost("rewritten");
}

TEST_F(OpenCheckpointTest, AFailingDiskIsUnavailableAndServesAgainLater) {
  calls_.FailReads(3, EIO);
  EXPECT_THAT(Read(*checkpoint_, "t1"),
              StatusIs(absl::StatusCode::kUnavailable,
                       absl::StrCat("reading tensor 't1': ", ShardName(1, 2), ": Input/output error")));
  EXPECT_EQ(*Read(*checkpoint_, "t1"), FixtureBytes("t1", 6));
}

TEST_F(OpenCheckpointTest, EveryReadOfOpeningMayFailWithoutHarm) {
  const int64_t before = calls_.reads();
  ASSERT_THAT(Open("model-*.safetensors"), IsOk());
  const int64_t reads = calls_.reads() - before;
  for (int64_t n = 0; n < reads; ++n) {
    FaultyFileCalls calls;
    calls.FailReadsAfter(n, 1'000'000, EIO);
    EXPECT_THAT(Checkpoint::Open(folder_ / "model-*.safetensors", calls),
                StatusIs(absl::StatusCode::kUnavailable, "Input/output error"))
        << n;
  }
}

}  // namespace
}  // namespace ditserve
