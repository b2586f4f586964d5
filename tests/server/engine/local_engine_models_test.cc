// Models that an engine loads, and checkpoints that change underneath.
#include <ATen/ops/equal.h>

#include <filesystem>
#include <fstream>

#include "tests/server/engine/local_engine_fixture.h"

namespace ditserve {
namespace {

TEST_F(LocalEngineTest, AModelIsThereBeforeItIsReady) {
  LocalEngineOptions options;
  options.host_budget_bytes = 64 << 20;
  options.models = {"tiny", "later"};
  const auto engine = LocalEngine::Make(options, {{device_.get(), 64 << 20}}, &clock_);
  ASSERT_THAT(engine, IsOk());
  EXPECT_THAT((*engine)->LoadModel({"tiny", folder_ / "model"}), IsOk());
  const std::vector<ModelInfo> models = (*engine)->Models();
  ASSERT_EQ(models.size(), 2u);
  EXPECT_TRUE(models[0].ready);
  EXPECT_EQ(models[1].name, "later");
  EXPECT_FALSE(models[1].ready);
}

TEST_F(LocalEngineTest, ACheckpointThatChangesUnderneathIsDataLossAndNothingElse) {
  const auto engine = MakeEngine();
  const at::Tensor kept = Output(*engine, MakeCall(ProfileNamed("host-offload")));
  for (const auto& file : std::filesystem::directory_iterator(folder_ / "model")) {
    if (file.path().extension() == ".safetensors") std::filesystem::resize_file(file.path(), 64);
  }
  EXPECT_TRUE(at::equal(Output(*engine, MakeCall(ProfileNamed("host-offload"))), kept)) << "it has its copies";
  const auto fresh = LocalEngine::Make({64 << 20, 0, 1}, {{device_.get(), 64 << 20}}, &clock_);
  EXPECT_THAT((*fresh)->LoadModel({"tiny", folder_ / "model"}), StatusIs(absl::StatusCode::kInvalidArgument, "tiny"));
}

TEST_F(LocalEngineTest, ATruncatedShardEndsTheRequestWithDataLoss) {
  const auto engine = MakeEngine();
  for (const auto& file : std::filesystem::directory_iterator(folder_ / "model")) {
    if (file.path().extension() == ".safetensors") std::filesystem::resize_file(file.path(), 64);
  }
  EXPECT_THAT(Send(*engine, MakeCall(ProfileNamed("disk")))->Wait(),
              StatusIs(absl::StatusCode::kDataLoss, "diffusion_pytorch_model"));
  EXPECT_EQ(engine->Residency().devices[0].memory.usage.activations_bytes, 0);
}

TEST_F(LocalEngineTest, AShardThatIsReplacedOrUnlinkedInMidStreamIsNeverMixed) {
  for (const bool replaced : {true, false}) {
    std::filesystem::remove_all(folder_ / "model");
    ASSERT_THAT(WriteSeededCheckpoint({TinyConfig(), 1}, folder_ / "model", nullptr, nullptr), IsOk());
    const auto engine = MakeEngine();
    const auto change = [&](const ForwardProgress& progress) {
      if (progress.modules_done != 3) return;
      for (const auto& file : std::filesystem::directory_iterator(folder_ / "model")) {
        if (file.path().extension() != ".safetensors") continue;
        const std::string copy = file.path().string() + ".new";
        if (replaced) {
          std::filesystem::copy_file(file.path(), copy);
          std::filesystem::rename(copy, file.path());
        } else {
          std::filesystem::remove(file.path());
        }
      }
    };
    EXPECT_THAT(Send(*engine, MakeCall(ProfileNamed("disk")), change)->Wait(),
                StatusIs(absl::StatusCode::kDataLoss, "diffusion_pytorch_model"));
    EXPECT_THAT(engine->Residency().devices[0].memory.usage.activations_bytes, 0);
    EXPECT_EQ(engine->Models().size(), 1u) << "the server lives";
  }
}

TEST_F(LocalEngineTest, NamesTheTensorThatDoesNotFitTheModel) {
  QwenImageDiTConfig wider = TinyConfig();
  wider.joint_attention_dim = 128;
  std::ofstream(folder_ / "model/config.json") << ToConfigJson(wider);
  const auto engine = LocalEngine::Make({64 << 20, 0, 1}, {{device_.get(), 64 << 20}}, &clock_);
  EXPECT_THAT((*engine)->LoadModel({"tiny", folder_ / "model"}),
              StatusIs(absl::StatusCode::kInvalidArgument, "txt_norm.weight"));
  wider = TinyConfig();
  wider.num_layers = 4;
  std::ofstream(folder_ / "model/config.json") << ToConfigJson(wider);
  EXPECT_THAT((*engine)->LoadModel({"tiny", folder_ / "model"}),
              StatusIs(absl::StatusCode::kInvalidArgument, "has no tensor 'transformer_blocks.3."));
  wider.num_layers = 2;
  std::ofstream(folder_ / "model/config.json") << ToConfigJson(wider);
  EXPECT_THAT((*engine)->LoadModel({"tiny", folder_ / "model"}),
              StatusIs(absl::StatusCode::kInvalidArgument, "is not part of the model"));
}

TEST_F(LocalEngineTest, TakesAModelWithoutConfigurationByItsTensors) {
  std::filesystem::remove(folder_ / "model/config.json");
  const auto engine = LocalEngine::Make({64 << 20, 0, 1}, {{device_.get(), 64 << 20}}, &clock_);
  EXPECT_THAT((*engine)->LoadModel({"tiny", folder_ / "model"}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "no config.json, and heads of 32 channels and patches of 64, expected 128 and 64"));
  SeededCheckpointOptions options;
  options.config.num_layers = 2;
  options.config.num_attention_heads = 1;
  options.config.joint_attention_dim = 64;
  ASSERT_THAT(WriteSeededCheckpoint(options, folder_ / "bare", nullptr, nullptr), IsOk());
  std::filesystem::remove(folder_ / "bare/config.json");
  ASSERT_THAT((*engine)->LoadModel({"tiny", folder_ / "bare"}), IsOk());
  EXPECT_EQ(ToConfigJson((*engine)->Models()[0].model->config()), ToConfigJson(options.config));
}

}  // namespace
}  // namespace ditserve
