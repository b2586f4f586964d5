#include "models/seeded_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "core/devices/cast.h"
#include "core/storage/checkpoint.h"
#include "core/storage/file.h"
#include "core/storage/safetensors.h"
#include "models/module_tree.h"
#include "models/seeded_values.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

// One block of width 32; 45 tensors.
SeededCheckpointOptions Tiny() {
  SeededCheckpointOptions options;
  options.config.num_layers = 1;
  options.config.num_attention_heads = 2;
  options.config.attention_head_dim = 16;
  options.config.axes_dims_rope = {4, 4, 8};
  options.config.joint_attention_dim = 24;
  options.shards = 3;
  return options;
}

absl::Status Write(const SeededCheckpointOptions& options, const std::string& directory) {
  return WriteSeededCheckpoint(options, directory, nullptr, nullptr);
}

std::vector<std::string> NamesIn(const std::string& folder) {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

// FNV-1a over the files' names and bytes.
uint64_t HashOf(const std::string& folder) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const std::string& name : NamesIn(folder)) {
    for (const char c : absl::StrCat(name, ReadWholeFile(absl::StrCat(folder, "/", name)))) {
      hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
    }
  }
  return hash;
}

std::vector<float> ValuesOf(const Checkpoint& checkpoint, const std::string& name) {
  const StoredTensor* tensor = checkpoint.Find(name);
  if (tensor == nullptr) return {};
  const size_t slot_bytes =
      (tensor->size_bytes + 3 * Checkpoint::kReadAlignment) / Checkpoint::kReadAlignment * Checkpoint::kReadAlignment;
  const std::unique_ptr<void, decltype(&std::free)> slot(std::aligned_alloc(Checkpoint::kReadAlignment, slot_bytes),
                                                         &std::free);
  const auto bytes =
      checkpoint.Read(*tensor, 0, tensor->size_bytes, absl::MakeSpan(static_cast<std::byte*>(slot.get()), slot_bytes));
  EXPECT_THAT(bytes, IsOk());
  if (!bytes.ok()) return {};
  std::vector<float> values(tensor->size_bytes / SizeOf(tensor->dtype));
  Cast(bytes->data(), tensor->dtype, {}, values.data(), DType::kFloat32, static_cast<int64_t>(values.size()));
  return values;
}

struct Moments {
  double mean, deviation;
};

Moments MomentsOf(const std::vector<float>& values) {
  double sum = 0, squares = 0;
  for (const float value : values) sum += value;
  const double mean = sum / static_cast<double>(values.size());
  for (const float value : values) squares += (value - mean) * (value - mean);
  return {mean, std::sqrt(squares / static_cast<double>(values.size()))};
}

// As long as it lives, no file can grow beyond `bytes`; writing more fails as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_ = {};
  void (*handler_)(int);
};

// scripts/parity/cases.py makes the same.
TEST(SeededValuesTest, AreTheSameBitsAsInPython) {
  std::vector<float> values(100'000);
  FillSeeded(0, "latents", 0, 100'000, 0.0f, 1.0f, values.data());
  EXPECT_EQ(values[0], -0x1.ca7d22p+0f);
  EXPECT_EQ(values[1], 0x1.cf006ap-4f);
  EXPECT_EQ(values[2], -0x1.89f9eep-1f);
  EXPECT_EQ(values[99'999], -0x1.f3b31ep-3f);
  FillSeeded(~uint64_t{0}, "prompt_emb", 99'999, 1, 0.0f, 1.0f, values.data());
  EXPECT_EQ(values[0], 0x1.94fbfep+0f);
}

TEST(SeededValuesTest, DoNotDependOnHowTheyAreCut) {
  std::vector<float> whole(100), parts(100);
  FillSeeded(7, "x", 0, 100, 1.0f, 0.1f, whole.data());
  FillSeeded(7, "x", 0, 33, 1.0f, 0.1f, parts.data());
  FillSeeded(7, "x", 33, 67, 1.0f, 0.1f, parts.data() + 33);
  EXPECT_EQ(whole, parts);
}

TEST(SeededCheckpointTest, BytesAreTheSameOnEveryMachine) {
  TempFolder folder;
  ASSERT_THAT(Write(Tiny(), folder / "out"), IsOk());
  EXPECT_EQ(HashOf(folder / "out"), 7163456853691161111u);
}

TEST(SeededCheckpointTest, BytesDependOnTheSeed) {
  TempFolder folder;
  SeededCheckpointOptions options = Tiny();
  ASSERT_THAT(Write(options, folder / "0"), IsOk());
  options.seed = 1;
  ASSERT_THAT(Write(options, folder / "1"), IsOk());
  EXPECT_EQ(NamesIn(folder / "0"), NamesIn(folder / "1"));
  EXPECT_NE(HashOf(folder / "0"), HashOf(folder / "1"));
}

TEST(SeededCheckpointTest, HasTheLayoutOfDiffusers) {
  TempFolder folder;
  ASSERT_THAT(Write(Tiny(), folder / "out"), IsOk());
  EXPECT_THAT(NamesIn(folder / "out"), ElementsAre("config.json", "diffusion_pytorch_model-00001-of-00003.safetensors",
                                                   "diffusion_pytorch_model-00002-of-00003.safetensors",
                                                   "diffusion_pytorch_model-00003-of-00003.safetensors",
                                                   "diffusion_pytorch_model.safetensors.index.json"));
  EXPECT_THAT(NamesIn(folder.path()), ElementsAre("out"));
}

TEST(SeededCheckpointTest, HoldsEveryParameterOfTheModelAndNothingElse) {
  TempFolder folder;
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat8E4M3}) {
    SCOPED_TRACE(testing::Message() << Name(dtype));
    SeededCheckpointOptions options = Tiny();
    options.dtype = dtype;
    const std::string out = folder / Name(dtype);
    ASSERT_THAT(Write(options, out), IsOk());
    const auto checkpoint = Checkpoint::Open(out);
    ASSERT_THAT(checkpoint, IsOk());
    size_t parameters = 0;
    for (const ModuleSpec& module : ListModules(QwenImageDiTTree(options.config))) {
      for (const ParameterSpec& parameter : module.parameters) {
        const StoredTensor* tensor = (*checkpoint)->Find(absl::StrCat(module.path, ".", parameter.name));
        ASSERT_NE(tensor, nullptr) << module.path;
        EXPECT_EQ(tensor->shape, parameter.shape);
        EXPECT_EQ(tensor->dtype, dtype);
        ++parameters;
      }
    }
    EXPECT_EQ((*checkpoint)->tensors().size(), parameters);
  }
}

TEST(SeededCheckpointTest, ConfigReadsBack) {
  TempFolder folder;
  ASSERT_THAT(Write(Tiny(), folder / "out"), IsOk());
  EXPECT_EQ(ReadWholeFile(folder / "out/config.json"), ToConfigJson(Tiny().config));
}

TEST(SeededCheckpointTest, WeightsAreWhatTheirNameAndSeedSay) {
  TempFolder folder;
  SeededCheckpointOptions options = Tiny();
  options.dtype = DType::kFloat32;
  options.seed = 5;
  ASSERT_THAT(Write(options, folder / "out"), IsOk());
  const auto checkpoint = Checkpoint::Open(folder / "out");
  ASSERT_THAT(checkpoint, IsOk());
  constexpr int kElements = 32 * 64;
  std::vector<float> expected(kElements);
  FillSeeded(5, "img_in.weight", 0, kElements, 0.0f, 0.125f, expected.data());  // 1 / sqrt(64)
  EXPECT_EQ(ValuesOf(**checkpoint, "img_in.weight"), expected);
}

TEST(SeededCheckpointTest, WeightsKeepActivationsOfOrderOne) {
  TempFolder folder;
  SeededCheckpointOptions options = Tiny();
  options.config.joint_attention_dim = 4096;
  ASSERT_THAT(Write(options, folder / "out"), IsOk());
  const auto checkpoint = Checkpoint::Open(folder / "out");
  ASSERT_THAT(checkpoint, IsOk());
  const Moments linear = MomentsOf(ValuesOf(**checkpoint, "txt_in.weight"));
  EXPECT_NEAR(linear.mean, 0.0, 1e-3);
  EXPECT_NEAR(linear.deviation, 1.0 / 64, 1e-3);
  const Moments bias = MomentsOf(ValuesOf(**checkpoint, "transformer_blocks.0.img_mod.1.bias"));
  EXPECT_NEAR(bias.deviation, 0.02, 5e-3);
  const Moments norm = MomentsOf(ValuesOf(**checkpoint, "txt_norm.weight"));
  EXPECT_NEAR(norm.mean, 1.0, 1e-2);
  EXPECT_NEAR(norm.deviation, 0.1, 1e-2);
}

TEST(SeededCheckpointTest, FillsEveryShardAndSortsItByName) {
  TempFolder folder;
  SeededCheckpointOptions options = Tiny();
  for (const int shards : {1, 9, 45}) {
    options.shards = shards;
    const std::string out = folder / std::to_string(shards);
    ASSERT_THAT(Write(options, out), IsOk());
    int found = 0;
    for (const std::string& name : NamesIn(out)) {
      if (fs::path(name).extension() != ".safetensors") continue;
      ++found;
      const auto file = File::Open(absl::StrCat(out, "/", name));
      ASSERT_THAT(file, IsOk());
      const auto header = ReadSafetensorsHeader(**file);
      ASSERT_THAT(header, IsOk());
      EXPECT_FALSE(header->tensors.empty()) << name;
      EXPECT_TRUE(std::is_sorted(header->tensors.begin(), header->tensors.end(),
                                 [](const TensorEntry& a, const TensorEntry& b) { return a.name < b.name; }))
          << name;
    }
    EXPECT_EQ(found, shards);
    EXPECT_THAT(Checkpoint::Open(out), IsOk());
  }
}

TEST(SeededCheckpointTest, WeightsDoNotDependOnTheNumberOfShards) {
  TempFolder folder;
  SeededCheckpointOptions options = Tiny();
  ASSERT_THAT(Write(options, folder / "3"), IsOk());
  options.shards = 9;
  ASSERT_THAT(Write(options, folder / "9"), IsOk());
  const auto three = Checkpoint::Open(folder / "3"), nine = Checkpoint::Open(folder / "9");
  ASSERT_THAT(three, IsOk());
  ASSERT_THAT(nine, IsOk());
  for (const StoredTensor& tensor : (*three)->tensors()) {
    EXPECT_EQ(ValuesOf(**three, tensor.name), ValuesOf(**nine, tensor.name)) << tensor.name;
  }
}

TEST(SeededCheckpointTest, TellsItsProgress) {
  TempFolder folder;
  std::vector<int64_t> written;
  int64_t all = 0;
  const auto progress = [&](int64_t bytes, int64_t total) {
    written.push_back(bytes);
    all = total;
  };
  ASSERT_THAT(WriteSeededCheckpoint(Tiny(), folder / "out", progress, nullptr), IsOk());
  EXPECT_TRUE(std::is_sorted(written.begin(), written.end()));
  ASSERT_FALSE(written.empty());
  EXPECT_EQ(written.back(), all);
  const auto checkpoint = Checkpoint::Open(folder / "out");
  ASSERT_THAT(checkpoint, IsOk());
  EXPECT_EQ((*checkpoint)->size_bytes(), all);
}

TEST(SeededCheckpointTest, CancelLeavesNothing) {
  TempFolder folder;
  int asked = 0;
  const auto cancelled = [&] { return ++asked > 3; };
  EXPECT_THAT(WriteSeededCheckpoint(Tiny(), folder / "out", nullptr, cancelled),
              StatusIs(absl::StatusCode::kCancelled, "interrupted"));
  EXPECT_THAT(NamesIn(folder.path()), IsEmpty());
}

TEST(SeededCheckpointTest, FullDiskLeavesNothing) {
  TempFolder folder;
  absl::Status status;
  {
    FileSizeLimit limit(16 << 10);
    status = Write(Tiny(), folder / "out");
  }
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted, "diffusion_pytorch_model-0000"));
  EXPECT_THAT(NamesIn(folder.path()), IsEmpty());
}

TEST(SeededCheckpointTest, TakesAnEmptyFolder) {
  TempFolder folder;
  fs::create_directory(folder / "out");
  ASSERT_THAT(Write(Tiny(), (folder / "out") + "/"), IsOk());
  EXPECT_THAT(Checkpoint::Open(folder / "out"), IsOk());
}

TEST(SeededCheckpointTest, LeavesAFolderWithFilesAlone) {
  TempFolder folder;
  fs::create_directory(folder / "out");
  WriteFile(folder / "out/mine", "x");
  EXPECT_THAT(Write(Tiny(), folder / "out"),
              StatusIs(absl::StatusCode::kAlreadyExists, "exists already and is not an empty folder"));
  EXPECT_THAT(NamesIn(folder / "out"), ElementsAre("mine"));
  EXPECT_THAT(NamesIn(folder.path()), ElementsAre("out"));
}

TEST(SeededCheckpointTest, LeavesAFileAlone) {
  TempFolder folder;
  WriteFile(folder / "out", "x");
  EXPECT_THAT(Write(Tiny(), folder / "out"), StatusIs(absl::StatusCode::kAlreadyExists, "not an empty folder"));
  EXPECT_EQ(ReadWholeFile(folder / "out"), "x");
}

TEST(SeededCheckpointTest, LeavesAnotherRunAlone) {
  TempFolder folder;
  fs::create_directory(folder / "out.partial");
  EXPECT_THAT(Write(Tiny(), folder / "out"),
              StatusIs(absl::StatusCode::kUnavailable, "'out.partial' beside the target: it exists"));
  EXPECT_THAT(NamesIn(folder.path()), ElementsAre("out.partial"));
}

TEST(SeededCheckpointTest, SaysWhyItCanNotWriteThere) {
  TempFolder folder;
  WriteFile(folder / "file", "x");
  EXPECT_THAT(Write(Tiny(), folder / "file/out"), StatusIs(absl::StatusCode::kUnavailable, "Not a directory"));
}

TEST(SeededCheckpointTest, RefusesWhatIsNoCheckpoint) {
  TempFolder folder;
  SeededCheckpointOptions options = Tiny();
  options.dtype = DType::kInt8;
  EXPECT_THAT(Write(options, folder / "out"), StatusIs(absl::StatusCode::kInvalidArgument, "float32, bfloat16"));
  options = Tiny();
  for (const int shards : {0, -1, 1001}) {
    options.shards = shards;
    EXPECT_THAT(Write(options, folder / "out"), StatusIs(absl::StatusCode::kInvalidArgument, "1 to 1000 shards"));
  }
  options.shards = 46;
  EXPECT_THAT(Write(options, folder / "out"),
              StatusIs(absl::StatusCode::kInvalidArgument, "no more shards than tensors, 45; found 46"));
  EXPECT_THAT(NamesIn(folder.path()), IsEmpty());
}

}  // namespace
}  // namespace ditserve
