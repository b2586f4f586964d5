// Compares the forward pass with what DiffSynth-Studio 2.1.12 and diffusers 0.42.1 answered (scripts/parity/record.py,
// and record_float8.py).
#include <ATen/ops/abs.h>
#include <ATen/ops/count_nonzero.h>
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

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/devices/cast.h"
#include "core/placement/profile.h"
#include "core/storage/checkpoint.h"
#include "models/ops.h"
#include "models/qwen_image_dit.h"
#include "models/seeded_checkpoint.h"
#include "nlohmann/json.hpp"
#include "tests/models/recorded.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

constexpr double kTolerance = 1e-5;  // Of the output's largest magnitude.

// Processors sum in different orders: the largest of thousands of roundings differs by a third between them, their root
// mean square by a few hundredths.
constexpr double kBetweenProcessors = 1.1;

// A checkpoint's weights for passes of one arithmetic, all in memory: many cases run with each.
class LoadedWeights {
 public:
  LoadedWeights(const Checkpoint& checkpoint, const std::vector<ModuleSpec>& modules, DType arithmetic)
      : arithmetic_(arithmetic) {
    std::map<std::string, DType> dtypes;
    for (const ModuleSpec& module : modules) {
      for (const ParameterSpec& parameter : module.parameters) {
        dtypes[NameOf(module, parameter)] = ComputationDType(module, arithmetic);
      }
    }
    constexpr int64_t kAlignment = Checkpoint::kReadAlignment;
    for (const StoredTensor& stored : checkpoint.tensors()) {
      const std::unique_ptr<std::byte, decltype(&std::free)> slot(
          static_cast<std::byte*>(std::aligned_alloc(kAlignment, (stored.size_bytes / kAlignment + 3) * kAlignment)),
          &std::free);
      const auto read =
          checkpoint.Read(stored, 0, stored.size_bytes, absl::MakeSpan(slot.get(), stored.size_bytes + 2 * kAlignment));
      EXPECT_THAT(read, IsOk());
      const int64_t count = stored.size_bytes / SizeOf(stored.dtype);
      Held& held = tensors_[stored.name];
      held.dtype = dtypes.at(stored.name);
      held.bytes.resize(count * SizeOf(held.dtype));
      Cast(read->data(), stored.dtype, {}, held.bytes.data(), held.dtype, count);
    }
  }

  LeasedTensor Find(const ModuleSpec& module, const ParameterSpec& parameter) const {
    const Held& held = tensors_.at(NameOf(module, parameter));
    return {held.bytes.data(), held.dtype};
  }
  DType arithmetic() const { return arithmetic_; }

 private:
  struct Held {
    DType dtype;
    std::vector<std::byte> bytes;
  };

  static std::string NameOf(const ModuleSpec& module, const ParameterSpec& parameter) {
    return module.path + "." + parameter.name;
  }

  const DType arithmetic_;
  std::map<std::string, Held> tensors_;
};

// Gives out loaded weights at once.
class LoadedLeases final : public LeaseSource {
 public:
  LoadedLeases(const LoadedWeights& weights, const std::vector<ModuleSpec>& modules)
      : weights_(weights), modules_(modules) {}

  void Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) override {
    LeasedTensors tensors;
    for (const ParameterSpec& parameter : modules_[module].parameters) {
      tensors.push_back(weights_.Find(modules_[module], parameter));
    }
    std::move(done)(Lease(std::move(tensors), nullptr));
  }

 private:
  const LoadedWeights& weights_;
  const std::vector<ModuleSpec>& modules_;
};

ForwardInputs InputsOf(const nlohmann::json& description) {
  const auto& mask = description["mask"];
  const int64_t batch = static_cast<int64_t>(mask.size()), tokens = static_cast<int64_t>(mask[0].size());
  const uint64_t seed = description["seed"].get<uint64_t>();
  ForwardInputs inputs;
  inputs.latents = Seeded(
      seed, "latents", {batch, 16, description["height"].get<int64_t>() / 8, description["width"].get<int64_t>() / 8});
  inputs.timestep = at::full({batch}, description["timestep"].get<double>(), at::kFloat);
  inputs.prompt_emb = Seeded(seed, "prompt_emb", {batch, tokens, 3584});
  inputs.prompt_emb_mask = at::empty({batch, tokens}, at::kBool);
  for (int64_t i = 0; i < batch; ++i) {
    for (int64_t t = 0; t < tokens; ++t) inputs.prompt_emb_mask[i][t] = mask[i][t].get<int>() != 0;
  }
  return inputs;
}

struct Error {
  double largest;  // Relative to the expected output's largest magnitude.
  double rms;      // Likewise: the root of the mean square, relative to the expected output's.
};

Error ErrorOf(const at::Tensor& output, const at::Tensor& expected) {
  EXPECT_EQ(output.sizes(), expected.sizes());
  const at::Tensor error = output.sub(expected);
  return {error.abs().max().item<double>() / expected.abs().max().item<double>(),
          std::sqrt(error.square().mean().item<double>() / expected.square().mean().item<double>())};
}

// The checkpoints that the recorded outputs belong to.
class ParityTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TempFolder>();
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

  static QwenImageDiT ModelOf(int blocks, Numerics numerics = Numerics::kDiffSynth) {
    QwenImageDiTConfig config;
    config.num_layers = blocks;
    config.numerics = numerics;
    return QwenImageDiT(config);
  }
  static LoadedWeights WeightsOf(int blocks, DType arithmetic) {
    return LoadedWeights(*checkpoints_[blocks], ModelOf(blocks).modules(), arithmetic);
  }

  static at::Tensor OutputOf(const nlohmann::json& description, Numerics numerics, const LoadedWeights& weights) {
    const c10::InferenceMode no_autograd;
    const QwenImageDiT model = ModelOf(description["blocks"].get<int>(), numerics);
    LoadedLeases leases(weights, model.modules());
    const ForwardInputs inputs = InputsOf(description);
    Task<at::Tensor> pass = model.Forward(inputs, at::kCPU, ScalarTypeOf(weights.arithmetic()), leases);
    pass.Start();
    return pass.Result();
  }

  // Of the output that the entry describes, with the weights of a checkpoint of as many blocks.
  static Error ErrorOfPass(const Recorded& recorded, const TensorEntry& entry, const LoadedWeights& weights) {
    const Numerics numerics = *NumericsFromName(entry.name.substr(entry.name.rfind('.') + 1));
    return ErrorOf(OutputOf(recorded.CaseOf(entry), numerics, weights), recorded.Read(entry));
  }

  static inline std::unique_ptr<TempFolder> folder_;
  static inline std::unique_ptr<Checkpoint> checkpoints_[3];
};

TEST_F(ParityTest, Float32EqualsBothReferences) {
  const Recorded recorded(DITSERVE_PARITY_FILE);
  int compared = 0;
  for (const int blocks : {1, 2}) {
    const LoadedWeights weights = WeightsOf(blocks, DType::kFloat32);
    for (const TensorEntry& entry : recorded.entries()) {
      if (recorded.CaseOf(entry)["blocks"] != blocks) continue;
      EXPECT_LE(ErrorOfPass(recorded, entry, weights).largest, kTolerance) << entry.name;
      ++compared;
    }
  }
  EXPECT_EQ(compared, 36);
}

TEST_F(ParityTest, BFloat16IsWithinWhatTheReferencesDifferFromFloat32) {
  const Recorded recorded(DITSERVE_PARITY_FILE);
  int compared = 0;
  for (const int blocks : {1, 2}) {
    const LoadedWeights weights = WeightsOf(blocks, DType::kBFloat16);
    for (const TensorEntry& entry : recorded.entries()) {
      const auto bound = recorded.metadata().find("bfloat16_rms_error." + entry.name);
      if (bound == recorded.metadata().end() || recorded.CaseOf(entry)["blocks"] != blocks) continue;
      double reference = 0;
      ASSERT_TRUE(absl::SimpleAtod(bound->second, &reference));
      const double error = ErrorOfPass(recorded, entry, weights).rms;
      EXPECT_LE(error, kBetweenProcessors * reference) << entry.name;
      RecordProperty(entry.name, absl::StrCat(error, ", the reference's ", reference));
      ++compared;
    }
  }
  EXPECT_EQ(compared, 6);
}

TEST_F(ParityTest, InFloat8APassIsAsFarFromFloat32AsDiffSynths) {
  const Recorded recorded(DITSERVE_FLOAT8_PARITY_FILE);
  int compared = 0;
  for (const int blocks : {1, 2}) {
    const LoadedWeights weights = WeightsOf(blocks, DType::kFloat8E4M3);
    for (const TensorEntry& entry : recorded.entries()) {
      if (!absl::EndsWith(entry.name, ".float8") || recorded.CaseOf(entry)["blocks"] != blocks) continue;
      const at::Tensor theirs = recorded.Read(entry);
      const at::Tensor exact = recorded.Read(recorded.Find(absl::StrCat(absl::StripSuffix(entry.name, "8"), "32")));
      const at::Tensor ours = OutputOf(recorded.CaseOf(entry), Numerics::kDiffSynth, weights);
      const Error difference = ErrorOf(ours, theirs), error = ErrorOf(ours, exact), reference = ErrorOf(theirs, exact);
      EXPECT_LE(error.rms, kBetweenProcessors * reference.rms) << entry.name;
      EXPECT_LE(difference.rms, 0.3 * reference.rms) << entry.name;
      RecordProperty(entry.name, absl::StrCat(difference.rms, ", of float32 ", error.rms, " and ", reference.rms));
      ++compared;
    }
  }
  EXPECT_EQ(compared, 3);
}

// Their inputs have rows of which float8 loses much, of which it has all, and rows that are too large for it.
TEST_F(ParityTest, AProductInFloat8IsDiffSynthsButForTheOrderInWhichItSums) {
  const c10::InferenceMode no_autograd;
  constexpr float kFactors[] = {1e-3, 1.0, 90.0, 150.0, 1e4, 1e30};
  const Recorded recorded(DITSERVE_FLOAT8_PARITY_FILE);
  const LoadedWeights weights = WeightsOf(2, DType::kFloat8E4M3);
  int64_t compared = 0, different = 0;
  const QwenImageDiT model = ModelOf(2);
  for (const ModuleSpec& module : model.modules()) {
    const auto entry = std::find_if(recorded.entries().begin(), recorded.entries().end(),
                                    [&](const auto& entry) { return entry.name == "product." + module.path; });
    if (entry == recorded.entries().end()) continue;
    const at::Tensor theirs = recorded.Read(*entry);
    const at::Tensor x = Seeded(0, module.path, {theirs.size(0), module.parameters[0].shape[1]});
    for (int64_t i = 0; i < x.size(0); ++i) x[i].mul_(kFactors[i % std::size(kFactors)]);
    LeasedTensors tensors;
    for (const ParameterSpec& parameter : module.parameters) tensors.push_back(weights.Find(module, parameter));
    const Weights linear(Lease(std::move(tensors), nullptr), module, at::kCPU);
    const at::Tensor ours = Linear({x.to(at::kBFloat16)}, linear)[0];
    // Of sums of thousands, in float32, and then the last bit in bfloat16.
    const at::Tensor wide = theirs.to(at::kFloat);
    const at::Tensor allowed = wide.abs().mul(1.0 / 128).add(wide.abs().amax(1, true).mul(1e-5));
    EXPECT_TRUE(ours.to(at::kFloat).sub(wide).abs().le(allowed).all().item<bool>()) << module.path;
    different += at::count_nonzero(ours.ne(theirs)).item<int64_t>();
    compared += theirs.numel();
  }
  RecordProperty("different", absl::StrCat(different, " of ", compared));
  EXPECT_GT(compared, 100'000);
  EXPECT_LT(different, compared / 1000);
}

}  // namespace
}  // namespace ditserve
