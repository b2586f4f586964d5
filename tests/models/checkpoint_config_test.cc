#include "models/checkpoint_config.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "models/module_tree.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

// The tensors of a checkpoint of such a model, as they are named and shaped.
std::vector<StoredTensor> TensorsOf(const QwenImageDiTConfig& config) {
  std::vector<StoredTensor> tensors;
  for (const ModuleSpec& module : ListModules(QwenImageDiTTree(config))) {
    for (const ParameterSpec& parameter : module.parameters) {
      tensors.push_back({module.path + "." + parameter.name, DType::kBFloat16, parameter.shape, 0, 0, 0});
    }
  }
  return tensors;
}

std::vector<StoredTensor> With(std::vector<StoredTensor> tensors, const std::string& name,
                               std::vector<int64_t> shape = {1}) {
  tensors.push_back({name, DType::kBFloat16, std::move(shape), 0, 0, 0});
  return tensors;
}

std::vector<StoredTensor> Without(std::vector<StoredTensor> tensors, const std::string& name) {
  std::erase_if(tensors, [&](const StoredTensor& tensor) { return tensor.name == name; });
  return tensors;
}

void ExpectRefused(const std::vector<StoredTensor>& tensors, const std::string& message) {
  EXPECT_THAT(ConfigOfTensors(tensors), StatusIs(absl::StatusCode::kInvalidArgument, message));
}

TEST(ConfigOfTensorsTest, ReadsQwenImage) {
  const absl::StatusOr<QwenImageDiTConfig> config = ConfigOfTensors(TensorsOf({}));
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(ToConfigJson(*config), ToConfigJson({}));
}

TEST(ConfigOfTensorsTest, ReadsBlocksHeadsAndPromptWidth) {
  QwenImageDiTConfig pruned;
  pruned.num_layers = 43;
  pruned.num_attention_heads = 3;
  pruned.joint_attention_dim = 640;
  const absl::StatusOr<QwenImageDiTConfig> config = ConfigOfTensors(TensorsOf(pruned));
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(ToConfigJson(*config), ToConfigJson(pruned));
}

TEST(ConfigOfTensorsTest, RefusesTheOtherModelsOfTheFamilyByTheirTensors) {
  const std::vector<StoredTensor> plain = TensorsOf({});
  ExpectRefused(With(plain, "time_text_embed.addition_t_embedding.weight", {2, 3072}),
                "no config.json, and the tensor 'time_text_embed.addition_t_embedding.weight' belongs to "
                "Qwen-Image-Layered (use_additional_t_cond), which is not served");
  ExpectRefused(With(plain, "__index_timestep_zero__"), "'__index_timestep_zero__' belongs to Qwen-Image-Edit-2511");
  ExpectRefused(With({}, "model.diffusion_model.__index_timestep_zero__", {}),
                "'model.diffusion_model.__index_timestep_zero__' belongs to Qwen-Image-Edit-2511");
  ExpectRefused(With(plain, "txt_in.text_norm.weight", {4096}), "belongs to Qwen-Image-2.1");
  ExpectRefused(With(plain, "controlnet_blocks.0.weight", {3072, 3072}), "belongs to a ControlNet");
}

TEST(ConfigOfTensorsTest, RefusesWhatItCannotRead) {
  const std::vector<StoredTensor> plain = TensorsOf({});
  ExpectRefused(Without(plain, "img_in.weight"),
                "no config.json, and no tensor 'img_in.weight' of shape [width, in_channels] as a QwenImageDiT has");
  ExpectRefused(With(Without(plain, "txt_in.weight"), "txt_in.weight"),
                "'txt_in.weight' has shape [1], expected [width, joint_attention_dim]");
  ExpectRefused(With(Without(plain, "img_in.weight"), "img_in.weight", {200, 64}), "a width of 200, expected");
}

// Their axes and patches can't be known.
TEST(ConfigOfTensorsTest, RefusesHeadsAndPatchesThatAreNotQwenImages) {
  QwenImageDiTConfig heads;
  heads.attention_head_dim = 64;
  ExpectRefused(TensorsOf(heads), "heads of 64 channels and patches of 64, expected 128 and 64 as Qwen-Image has");
  QwenImageDiTConfig patches;
  patches.in_channels = 16;
  ExpectRefused(TensorsOf(patches), "heads of 128 channels and patches of 16, expected 128 and 64");
}

}  // namespace
}  // namespace ditserve
