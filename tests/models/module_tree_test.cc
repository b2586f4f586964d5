#include "models/module_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_replace.h"

namespace ditserve {
namespace {

using ::testing::ElementsAre;

// print(model), as DiffSynth-Studio's documentation shows it.
constexpr char kPrinted[] = R"(QwenImageDiT(
  (pos_embed): QwenEmbedRope()
  (time_text_embed): TimestepEmbeddings(
    (time_proj): TemporalTimesteps()
    (timestep_embedder): DiffusersCompatibleTimestepProj(
      (linear_1): Linear(in_features=256, out_features=3072, bias=True)
      (act): SiLU()
      (linear_2): Linear(in_features=3072, out_features=3072, bias=True)
    )
  )
  (txt_norm): RMSNorm()
  (img_in): Linear(in_features=64, out_features=3072, bias=True)
  (txt_in): Linear(in_features=3584, out_features=3072, bias=True)
  (transformer_blocks): ModuleList(
    (0-59): 60 x QwenImageTransformerBlock(
      (img_mod): Sequential(
        (0): SiLU()
        (1): Linear(in_features=3072, out_features=18432, bias=True)
      )
      (img_norm1): LayerNorm((3072,), eps=1e-06, elementwise_affine=False)
      (attn): QwenDoubleStreamAttention(
        (to_q): Linear(in_features=3072, out_features=3072, bias=True)
        (to_k): Linear(in_features=3072, out_features=3072, bias=True)
        (to_v): Linear(in_features=3072, out_features=3072, bias=True)
        (norm_q): RMSNorm()
        (norm_k): RMSNorm()
        (add_q_proj): Linear(in_features=3072, out_features=3072, bias=True)
        (add_k_proj): Linear(in_features=3072, out_features=3072, bias=True)
        (add_v_proj): Linear(in_features=3072, out_features=3072, bias=True)
        (norm_added_q): RMSNorm()
        (norm_added_k): RMSNorm()
        (to_out): Sequential(
          (0): Linear(in_features=3072, out_features=3072, bias=True)
        )
        (to_add_out): Linear(in_features=3072, out_features=3072, bias=True)
      )
      (img_norm2): LayerNorm((3072,), eps=1e-06, elementwise_affine=False)
      (img_mlp): QwenFeedForward(
        (net): ModuleList(
          (0): ApproximateGELU(
            (proj): Linear(in_features=3072, out_features=12288, bias=True)
          )
          (1): Dropout(p=0.0, inplace=False)
          (2): Linear(in_features=12288, out_features=3072, bias=True)
        )
      )
      (txt_mod): Sequential(
        (0): SiLU()
        (1): Linear(in_features=3072, out_features=18432, bias=True)
      )
      (txt_norm1): LayerNorm((3072,), eps=1e-06, elementwise_affine=False)
      (txt_norm2): LayerNorm((3072,), eps=1e-06, elementwise_affine=False)
      (txt_mlp): QwenFeedForward(
        (net): ModuleList(
          (0): ApproximateGELU(
            (proj): Linear(in_features=3072, out_features=12288, bias=True)
          )
          (1): Dropout(p=0.0, inplace=False)
          (2): Linear(in_features=12288, out_features=3072, bias=True)
        )
      )
    )
  )
  (norm_out): AdaLayerNorm(
    (linear): Linear(in_features=3072, out_features=6144, bias=True)
    (norm): LayerNorm((3072,), eps=1e-06, elementwise_affine=False)
  )
  (proj_out): Linear(in_features=3072, out_features=64, bias=True)
))";

QwenImageDiTConfig Layers(int64_t layers) {
  QwenImageDiTConfig config;
  config.num_layers = layers;
  return config;
}

std::vector<std::string> PathsOf(const std::vector<ModuleSpec>& modules) {
  std::vector<std::string> paths;
  paths.reserve(modules.size());
  for (const ModuleSpec& module : modules) paths.push_back(module.path);
  return paths;
}

int64_t ElementsOf(const std::vector<ModuleSpec>& modules) {
  int64_t elements = 0;
  for (const ModuleSpec& module : modules) {
    for (const ParameterSpec& parameter : module.parameters) {
      int64_t count = 1;
      for (const int64_t length : parameter.shape) count *= length;
      elements += count;
    }
  }
  return elements;
}

TEST(ModuleTreeTest, PrintsWhatPythonPrints) { EXPECT_EQ(Print(QwenImageDiTTree(Layers(60))), kPrinted); }

TEST(ModuleTreeTest, PrintsTwoBlocksFolded) {
  EXPECT_EQ(Print(QwenImageDiTTree(Layers(2))),
            absl::StrReplaceAll(kPrinted, {{"(0-59): 60 x Qwen", "(0-1): 2 x Qwen"}}));
}

TEST(ModuleTreeTest, PrintsOneBlockAlone) {
  EXPECT_EQ(Print(QwenImageDiTTree(Layers(1))), absl::StrReplaceAll(kPrinted, {{"(0-59): 60 x Qwen", "(0): Qwen"}}));
}

ModuleNode Leaf(const std::string& name, const std::string& type) { return {name, type, "", {}, {}}; }

TEST(ModuleTreeTest, FoldsEqualNeighboursAlone) {
  const ModuleNode list{
      "", "ModuleList", "", {}, {Leaf("0", "SiLU"), Leaf("1", "Dropout"), Leaf("2", "Dropout"), Leaf("3", "SiLU")}};
  EXPECT_EQ(Print(list), "ModuleList(\n  (0): SiLU()\n  (1-2): 2 x Dropout()\n  (3): SiLU()\n)");
}

TEST(ModuleTreeTest, FoldsModuleListsOnly) {
  const ModuleNode sequential{"", "Sequential", "", {}, {Leaf("0", "SiLU"), Leaf("1", "SiLU")}};
  EXPECT_EQ(Print(sequential), "Sequential(\n  (0): SiLU()\n  (1): SiLU()\n)");
}

TEST(ModuleTreeTest, ListsModulesInTheOrderOfTheirDefinition) {
  EXPECT_THAT(PathsOf(ListModules(QwenImageDiTTree(Layers(1)))),
              ElementsAre("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2",
                          "txt_norm", "img_in", "txt_in", "transformer_blocks.0.img_mod.1",
                          "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k",
                          "transformer_blocks.0.attn.to_v", "transformer_blocks.0.attn.norm_q",
                          "transformer_blocks.0.attn.norm_k", "transformer_blocks.0.attn.add_q_proj",
                          "transformer_blocks.0.attn.add_k_proj", "transformer_blocks.0.attn.add_v_proj",
                          "transformer_blocks.0.attn.norm_added_q", "transformer_blocks.0.attn.norm_added_k",
                          "transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.attn.to_add_out",
                          "transformer_blocks.0.img_mlp.net.0.proj", "transformer_blocks.0.img_mlp.net.2",
                          "transformer_blocks.0.txt_mod.1", "transformer_blocks.0.txt_mlp.net.0.proj",
                          "transformer_blocks.0.txt_mlp.net.2", "norm_out.linear", "proj_out"));
}

TEST(ModuleTreeTest, ListsTypesAndShapes) {
  const std::vector<ModuleSpec> modules = ListModules(QwenImageDiTTree(Layers(1)));
  const ModuleSpec& linear = modules[5];
  EXPECT_EQ(linear.type, "Linear");
  ASSERT_EQ(linear.parameters.size(), 2u);
  EXPECT_EQ(linear.parameters[0].name, "weight");
  EXPECT_THAT(linear.parameters[0].shape, ElementsAre(18432, 3072));
  EXPECT_EQ(linear.parameters[1].name, "bias");
  EXPECT_THAT(linear.parameters[1].shape, ElementsAre(18432));
  const ModuleSpec& norm = modules[2];
  EXPECT_EQ(norm.type, "RMSNorm");
  ASSERT_EQ(norm.parameters.size(), 1u);
  EXPECT_EQ(norm.parameters[0].name, "weight");
  EXPECT_THAT(norm.parameters[0].shape, ElementsAre(3584));
}

// The figures are of DiffSynth-Studio's model.
TEST(ModuleTreeTest, HasAsManyParametersAsTheReference) {
  EXPECT_EQ(ElementsOf(ListModules(QwenImageDiTTree(Layers(1)))), 380'354'624);
  EXPECT_EQ(ElementsOf(ListModules(QwenImageDiTTree(Layers(60)))), 20'430'401'088);
}

TEST(ModuleTreeTest, FollowsTheConfig) {
  QwenImageDiTConfig config = Layers(1);
  config.num_attention_heads = 2;
  config.attention_head_dim = 16;
  config.joint_attention_dim = 24;
  config.in_channels = 32;
  const std::vector<ModuleSpec> modules = ListModules(QwenImageDiTTree(config));
  EXPECT_THAT(modules[0].parameters[0].shape, ElementsAre(32, 256));     // linear_1
  EXPECT_THAT(modules[2].parameters[0].shape, ElementsAre(24));          // txt_norm
  EXPECT_THAT(modules[3].parameters[0].shape, ElementsAre(32, 32));      // img_in
  EXPECT_THAT(modules[4].parameters[0].shape, ElementsAre(32, 24));      // txt_in
  EXPECT_THAT(modules[9].parameters[0].shape, ElementsAre(16));          // norm_q
  EXPECT_THAT(modules[18].parameters[0].shape, ElementsAre(128, 32));    // img_mlp.net.0.proj
  EXPECT_THAT(modules.back().parameters[0].shape, ElementsAre(32, 32));  // proj_out
}

}  // namespace
}  // namespace ditserve
