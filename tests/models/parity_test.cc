// Compares the forward pass with what DiffSynth-Studio 2.1.12 and diffusers 0.42.1 answered (scripts/parity/record.py).
#include <ATen/ops/abs.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/devices/cast.h"
#include "core/storage/checkpoint.h"
#include "core/storage/safetensors.h"
#include "models/qwen_image_dit.h"
#include "models/seeded_checkpoint.h"
#include "models/seeded_values.h"
#include "nlohmann/json.hpp"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

constexpr double kTolerance = 1e-5;  // Of the output's largest magnitude.

// A checkpoint's weights in one dtype, all in memory: many cases run with each.
class LoadedWeights {
 public:
  LoadedWeights(const Checkpoint& checkpoint, DType dtype) : dtype_(dtype) {
    constexpr int64_t kAlignment = Checkpoint::kReadAlignment;
    for (const StoredTensor& stored : checkpoint.tensors()) {
      const std::unique_ptr<std::byte, decltype(&std::free)> slot(
          static_cast<std::byte*>(std::aligned_alloc(kAlignment, (stored.size_bytes / kAlignment + 3) * kAlignment)),
          &std::free);
      const auto read =
          checkpoint.Read(stored, 0, stored.size_bytes, absl::MakeSpan(slot.get(), stored.size_bytes + 2 * kAlignment));
      EXPECT_THAT(read, IsOk());
      const int64_t count = stored.size_bytes / SizeOf(stored.dtype);
      std::vector<std::byte>& bytes = tensors_[stored.name];
      bytes.resize(count * SizeOf(dtype));
      Cast(read->data(), stored.dtype, {}, bytes.data(), dtype, count);
    }
  }

  LeasedTensor Find(const std::string& name) const { return {tensors_.at(name).data(), dtype_}; }
  DType dtype() const { return dtype_; }

 private:
  const DType dtype_;
  std::map<std::string, std::vector<std::byte>> tensors_;
};

// Gives out loaded weights at once.
class LoadedLeases final : public LeaseSource {
 public:
  LoadedLeases(const LoadedWeights& weights, const std::vector<ModuleSpec>& modules)
      : weights_(weights), modules_(modules) {}

  void Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) override {
    LeasedTensors tensors;
    for (const ParameterSpec& parameter : modules_[module].parameters) {
      tensors.push_back(weights_.Find(modules_[module].path + "." + parameter.name));
    }
    std::move(done)(Lease(std::move(tensors), nullptr));
  }

 private:
  const LoadedWeights& weights_;
  const std::vector<ModuleSpec>& modules_;
};

// The recorded outputs, and the checkpoints they belong to.
class ParityTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TempFolder>();
    file_ = *File::Open(DITSERVE_PARITY_FILE);
    header_ = *ReadSafetensorsHeader(*file_);
    for (const int blocks : {1, 2}) {
      SeededCheckpointOptions options;
      options.config.num_layers = blocks;
      const std::string path = *folder_ / absl::StrCat("blocks", blocks);
      ASSERT_THAT(WriteSeededCheckpoint(options, path, nullptr, nullptr), IsOk());
      checkpoints_[blocks] = *Checkpoint::Open(path);
    }
  }
  static void TearDownTestSuite() {
    for (auto& checkpoint : checkpoints_) checkpoint.reset();
    folder_.reset();
  }

  static at::Tensor Seeded(uint64_t seed, const std::string& name, at::IntArrayRef shape) {
    const at::Tensor tensor = at::empty(shape, at::kFloat);
    FillSeeded(seed, name, 0, tensor.numel(), 0.0f, 1.0f, tensor.data_ptr<float>());
    return tensor;
  }

  static ForwardInputs InputsOf(const nlohmann::json& description) {
    const auto& mask = description["mask"];
    const int64_t batch = static_cast<int64_t>(mask.size()), tokens = static_cast<int64_t>(mask[0].size());
    const uint64_t seed = description["seed"].get<uint64_t>();
    ForwardInputs inputs;
    inputs.latents =
        Seeded(seed, "latents",
               {batch, 16, description["height"].get<int64_t>() / 8, description["width"].get<int64_t>() / 8});
    inputs.timestep = at::full({batch}, description["timestep"].get<double>(), at::kFloat);
    inputs.prompt_emb = Seeded(seed, "prompt_emb", {batch, tokens, 3584});
    inputs.prompt_emb_mask = at::empty({batch, tokens}, at::kBool);
    for (int64_t i = 0; i < batch; ++i) {
      for (int64_t t = 0; t < tokens; ++t) inputs.prompt_emb_mask[i][t] = mask[i][t].get<int>() != 0;
    }
    return inputs;
  }

  static at::Tensor Expected(const TensorEntry& entry) {
    const at::Tensor tensor = at::empty(entry.shape, at::kFloat);
    EXPECT_THAT(file_->ReadAt(entry.offset_bytes, absl::MakeSpan(static_cast<std::byte*>(tensor.data_ptr()),
                                                                 static_cast<size_t>(entry.size_bytes))),
                IsOk());
    return tensor;
  }

  struct Error {
    double largest;  // Relative to the output's largest magnitude.
    double rms;      // Likewise: the root of the mean square, relative to the output's.
  };

  // With the weights of a checkpoint of as many blocks.
  static Error ErrorOf(const TensorEntry& entry, const LoadedWeights& weights) {
    const c10::InferenceMode no_autograd;
    const nlohmann::json description = DescriptionOf(entry);
    QwenImageDiTConfig config;
    config.num_layers = description["blocks"].get<int64_t>();
    config.numerics = *NumericsFromName(entry.name.substr(entry.name.rfind('.') + 1));
    const QwenImageDiT model(config);
    LoadedLeases leases(weights, model.modules());
    const ForwardInputs inputs = InputsOf(description);
    Task<at::Tensor> pass = model.Forward(inputs, at::kCPU, ScalarTypeOf(weights.dtype()), leases);
    pass.Start();
    const at::Tensor output = pass.Result();
    const at::Tensor expected = Expected(entry);
    EXPECT_EQ(output.sizes(), expected.sizes()) << entry.name;
    const at::Tensor error = output.sub(expected);
    return {error.abs().max().item<double>() / expected.abs().max().item<double>(),
            std::sqrt(error.square().mean().item<double>() / expected.square().mean().item<double>())};
  }

  static nlohmann::json DescriptionOf(const TensorEntry& entry) {
    return nlohmann::json::parse(header_.metadata.at(entry.name.substr(0, entry.name.rfind('.'))));
  }

  static inline std::unique_ptr<TempFolder> folder_;
  static inline std::unique_ptr<File> file_;
  static inline SafetensorsHeader header_;
  static inline std::unique_ptr<Checkpoint> checkpoints_[3];
};

TEST_F(ParityTest, Float32EqualsBothReferences) {
  int compared = 0;
  for (const int blocks : {1, 2}) {
    const LoadedWeights weights(*checkpoints_[blocks], DType::kFloat32);
    for (const TensorEntry& entry : header_.tensors) {
      if (DescriptionOf(entry)["blocks"] != blocks) continue;
      EXPECT_LE(ErrorOf(entry, weights).largest, kTolerance) << entry.name;
      ++compared;
    }
  }
  EXPECT_EQ(compared, 36);
}

TEST_F(ParityTest, BFloat16IsWithinWhatTheReferencesDifferFromFloat32) {
  // Processors sum in different orders: the largest of thousands of roundings differs by a third between them, their
  // root mean square by a few hundredths.
  constexpr double kBetweenProcessors = 1.1;
  int compared = 0;
  for (const int blocks : {1, 2}) {
    const LoadedWeights weights(*checkpoints_[blocks], DType::kBFloat16);
    for (const TensorEntry& entry : header_.tensors) {
      const auto bound = header_.metadata.find("bfloat16_rms_error." + entry.name);
      if (bound == header_.metadata.end() || DescriptionOf(entry)["blocks"] != blocks) continue;
      double reference = 0;
      ASSERT_TRUE(absl::SimpleAtod(bound->second, &reference));
      const double error = ErrorOf(entry, weights).rms;
      EXPECT_LE(error, kBetweenProcessors * reference) << entry.name;
      RecordProperty(entry.name, absl::StrCat(error, ", the reference's ", reference));
      ++compared;
    }
  }
  EXPECT_EQ(compared, 6);
}

}  // namespace
}  // namespace ditserve
