#include "models/qwen_image_dit.h"

#include <ATen/Parallel.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "core/placement/profile.h"
#include "models/activation_memory.h"
#include "models/errors.h"
#include "tests/testing/fake_lease_source.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

QwenImageDiTConfig TinyConfig() {
  QwenImageDiTConfig config;
  config.num_layers = 2;
  config.num_attention_heads = 2;
  config.attention_head_dim = 16;
  config.axes_dims_rope = {4, 6, 6};
  config.joint_attention_dim = 32;
  return config;
}

at::Tensor Seeded(const std::string& name, at::IntArrayRef shape) {
  const at::Tensor tensor = at::empty(shape, at::kFloat);
  FillSeeded(1, name, 0, tensor.numel(), 0.0f, 1.0f, tensor.data_ptr<float>());
  return tensor;
}

ForwardInputs MakeInputs(const QwenImageDiTConfig& config, int64_t batch, int64_t height, int64_t width,
                         int64_t tokens) {
  return {Seeded("latents", {batch, config.out_channels, height / 8, width / 8}),
          at::full({batch}, 0.5f, at::kFloat),
          Seeded("prompt", {batch, tokens, config.joint_attention_dim}),
          {}};
}

// The inputs of item `i` alone, with its first `tokens` tokens.
ForwardInputs ItemOf(const ForwardInputs& inputs, int64_t i, int64_t tokens) {
  return {inputs.latents.narrow(0, i, 1),
          inputs.timestep.narrow(0, i, 1),
          inputs.prompt_emb.narrow(0, i, 1).narrow(1, 0, tokens),
          {}};
}

at::Tensor RunPass(const QwenImageDiT& model, const ForwardInputs& inputs, DType dtype = DType::kFloat32) {
  const c10::InferenceMode no_autograd;
  FakeLeaseSource weights(model.modules(),
                          [dtype](const ModuleSpec& module) { return ComputationDType(module, dtype); });
  Task<at::Tensor> pass = model.Forward(inputs, at::kCPU, ScalarTypeOf(dtype), weights);
  pass.Start();
  EXPECT_TRUE(pass.done());
  EXPECT_EQ(weights.given(), model.modules_used());
  EXPECT_EQ(weights.held(), 0);
  return pass.Result();
}

TEST(QwenImageDiTTest, ReturnsThePackedSequenceInTheLatentsDtype) {
  const QwenImageDiT model(TinyConfig());
  ForwardInputs inputs = MakeInputs(model.config(), 2, 48, 80, 5);
  inputs.latents = inputs.latents.to(at::kBFloat16);
  const at::Tensor output = RunPass(model, inputs);
  EXPECT_EQ(output.sizes(), (at::IntArrayRef{2, 3 * 5, 64}));
  EXPECT_EQ(output.scalar_type(), at::kBFloat16);
}

TEST(QwenImageDiTTest, ModulesAreInTheOrderInWhichTheyAreUsed) {
  const QwenImageDiT model(TinyConfig());
  EXPECT_EQ(model.modules().front().path, "img_in");
  EXPECT_EQ(model.modules().size(), 2u * 18 + 7);
  EXPECT_EQ(model.modules()[static_cast<size_t>(model.modules_used()) - 1].path, "proj_out");
}

// That no output depends on them is seen in tests/models/recorded/: its hashes are of passes with them.
TEST(QwenImageDiTTest, TheLastBlocksTextNeedsOnlyKeysAndValues) {
  const QwenImageDiT model(TinyConfig());
  std::vector<std::string> unused;
  for (const ModuleIndex module : model.unused_modules()) {
    unused.push_back(model.modules()[static_cast<size_t>(module)].path);
  }
  const std::string last = "transformer_blocks.1.";
  EXPECT_THAT(unused, ::testing::UnorderedElementsAre(last + "attn.add_q_proj", last + "attn.norm_added_q",
                                                      last + "attn.to_add_out", last + "txt_mlp.net.0.proj",
                                                      last + "txt_mlp.net.2"));
}

TEST(QwenImageDiTTest, AnItemOfABatchEqualsTheItemAlone) {
  const QwenImageDiT model(TinyConfig());
  constexpr int64_t kLengths[] = {1, 5, 9};
  ForwardInputs inputs = MakeInputs(model.config(), 3, 64, 32, 9);
  inputs.prompt_emb_mask = at::ones({3, 9}, at::kBool);
  for (int64_t i = 0; i < 3; ++i) inputs.prompt_emb_mask[i].narrow(0, kLengths[i], 9 - kLengths[i]).fill_(false);
  const at::Tensor together = RunPass(model, inputs);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(at::equal(together[i], RunPass(model, ItemOf(inputs, i, kLengths[i]))[0])) << "item " << i;
  }
}

TEST(QwenImageDiTTest, TokensThatDoNotCountNeverChangeAResult) {
  const QwenImageDiT model(TinyConfig());
  ForwardInputs inputs = MakeInputs(model.config(), 1, 32, 32, 7);
  inputs.prompt_emb_mask = at::ones({1, 7}, at::kBool);
  inputs.prompt_emb_mask[0][2] = false;
  inputs.prompt_emb_mask[0][6] = false;
  const at::Tensor expected = RunPass(model, inputs);
  inputs.prompt_emb = inputs.prompt_emb.clone();
  inputs.prompt_emb[0][2].fill_(1e6);
  inputs.prompt_emb[0][6].fill_(-1e6);
  EXPECT_TRUE(at::equal(RunPass(model, inputs), expected));
}

TEST(QwenImageDiTTest, DoesNotWriteToItsInputs) {
  const QwenImageDiT model(TinyConfig());
  const ForwardInputs inputs = MakeInputs(model.config(), 1, 32, 32, 3);
  const at::Tensor latents = inputs.latents.clone(), prompt = inputs.prompt_emb.clone();
  RunPass(model, inputs);
  EXPECT_TRUE(at::equal(inputs.latents, latents));
  EXPECT_TRUE(at::equal(inputs.prompt_emb, prompt));
}

TEST(QwenImageDiTTest, TheTwoNumericsDifferInTheActivation) {
  QwenImageDiTConfig config = TinyConfig();
  const at::Tensor diffsynth = RunPass(QwenImageDiT(config), MakeInputs(config, 1, 32, 32, 3));
  config.numerics = Numerics::kDiffusers;
  const at::Tensor diffusers = RunPass(QwenImageDiT(config), MakeInputs(config, 1, 32, 32, 3));
  EXPECT_FALSE(at::equal(diffsynth, diffusers));
  EXPECT_TRUE(at::allclose(diffsynth, diffusers, 0, 0.1));
}

TEST(QwenImageDiTTest, NarrowArithmeticIsCloseToFloat32) {
  for (const Numerics numerics : {Numerics::kDiffSynth, Numerics::kDiffusers}) {
    QwenImageDiTConfig config = TinyConfig();
    config.numerics = numerics;
    const QwenImageDiT model(config);
    const ForwardInputs inputs = MakeInputs(config, 1, 64, 48, 5);
    const at::Tensor exact = RunPass(model, inputs);
    EXPECT_TRUE(at::allclose(RunPass(model, inputs, DType::kBFloat16), exact, 0, 0.1));
    EXPECT_TRUE(at::allclose(RunPass(model, inputs, DType::kFloat16), exact, 0, 0.05));
    EXPECT_TRUE(at::allclose(RunPass(model, inputs, DType::kFloat8E4M3), exact, 0, 0.3));
  }
}

// Where activations are asked for in bfloat16, a device that computes in float32 must make the same channels of the
// timestep as one that computes in bfloat16: they turn by a radian where diffusers rounds 0.987.
TEST(QwenImageDiTTest, DiffusersRoundsTheTimestepToWhatActivationsAreAskedFor) {
  QwenImageDiTConfig config = TinyConfig();
  config.numerics = Numerics::kDiffusers;
  const QwenImageDiT diffusers(config);
  const QwenImageDiT diffsynth(TinyConfig());
  ForwardInputs inputs = MakeInputs(config, 1, 32, 48, 5);
  inputs.timestep = at::full({1}, 0.987f, at::kFloat);
  const at::Tensor exact = RunPass(diffusers, inputs), unrounded = RunPass(diffsynth, inputs);
  inputs.activations = at::kBFloat16;
  EXPECT_TRUE(at::equal(RunPass(diffsynth, inputs), unrounded));
  const at::Tensor wide = RunPass(diffusers, inputs), narrow = RunPass(diffusers, inputs, DType::kBFloat16);
  EXPECT_FALSE(at::allclose(wide, exact, 0, 0.05));
  EXPECT_TRUE(at::allclose(wide, narrow, 0, 0.05));
}

TEST(QwenImageDiTTest, ALeaseThatFailsEndsThePassWithItsStatus) {
  const QwenImageDiT model(TinyConfig());
  const ForwardInputs inputs = MakeInputs(model.config(), 1, 16, 16, 1);
  for (ModuleIndex module = 0; module < model.modules_used(); ++module) {
    FakeLeaseSource weights(model.modules(), DType::kFloat32);
    weights.FailAt(module, absl::DataLossError("gone"));
    Task<at::Tensor> pass = model.Forward(inputs, at::kCPU, at::kFloat, weights);
    pass.Start();
    ASSERT_TRUE(pass.done());
    EXPECT_THAT(CatchStatus([&] { pass.Result(); }), StatusIs(absl::StatusCode::kDataLoss, "gone"));
    EXPECT_EQ(weights.held(), 0);
  }
}

TEST(QwenImageDiTTest, WaitsForLeasesThatComeLater) {
  const QwenImageDiT model(TinyConfig());
  const ForwardInputs inputs = MakeInputs(model.config(), 2, 32, 48, 4);
  FakeLeaseSource weights(model.modules(), DType::kFloat32);
  weights.WaitForGive();
  Task<at::Tensor> pass = model.Forward(inputs, at::kCPU, at::kFloat, weights);
  pass.Start();
  while (weights.waiting()) weights.Give();
  ASSERT_TRUE(pass.done());
  EXPECT_TRUE(at::equal(pass.Result(), RunPass(model, inputs)));
}

TEST(QwenImageDiTTest, APassThatIsDroppedWhileItWaitsLeavesNothing) {
  const QwenImageDiT model(TinyConfig());
  const ForwardInputs inputs = MakeInputs(model.config(), 1, 16, 16, 1);
  FakeLeaseSource weights(model.modules(), DType::kFloat32);
  weights.WaitForGive();
  {
    Task<at::Tensor> pass = model.Forward(inputs, at::kCPU, at::kFloat, weights);
    pass.Start();
    weights.Give();
  }
  EXPECT_EQ(weights.held(), 0);
}

TEST(QwenImageDiTTest, UnpatchifyUndoesThePacking) {
  const QwenImageDiTConfig config = TinyConfig();
  const at::Tensor latents = Seeded("latents", {2, 16, 4, 6});
  // "B C (H P) (W Q) -> B (H W) (C P Q)"
  const at::Tensor patches = latents.view({2, 16, 2, 2, 3, 2}).permute({0, 2, 4, 1, 3, 5}).reshape({2, 6, 64});
  EXPECT_TRUE(at::equal(Unpatchify(patches, config, 32, 48), latents));
}

TEST(QwenImageDiTTest, TheActivationPeakIsWhatAPassTakes) {
  QwenImageDiTConfig config = TinyConfig();
  config.num_attention_heads = 8;
  config.attention_head_dim = 64;
  config.axes_dims_rope = {16, 24, 24};
  config.num_layers = 3;
  const QwenImageDiT model(config);
  ActivationMemory::InstallAllocator();
  for (const auto& [height, width, batch, tokens] :
       {std::tuple(512, 512, 1, 5), std::tuple(256, 768, 2, 77), std::tuple(64, 64, 3, 512)}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat8E4M3}) {
      const ForwardInputs inputs = MakeInputs(config, batch, height, width, tokens);
      const int64_t predicted = model.ActivationPeakBytes(ShapeOf(inputs), ScalarTypeOf(dtype));
      const auto memory = std::make_shared<ActivationMemory>(predicted);
      const ActivationMemory::Scope scope(memory);
      EXPECT_NO_THROW(RunPass(model, inputs, dtype)) << height << "x" << width << " " << Name(dtype);
      const int64_t taken = memory->peak_bytes();
      constexpr int64_t kKernels = 8 << 20;
      EXPECT_GE(taken, (predicted - kKernels) * 9 / 10) << height << "x" << width << " " << Name(dtype);
    }
  }
}

// Where a model is narrow, nothing takes as much as its output: each item's, all together, and these in the latents'
// dtype.
TEST(QwenImageDiTTest, TheActivationPeakHasTheOutputInTheLatentsDtype) {
  QwenImageDiTConfig config = TinyConfig();
  config.num_attention_heads = 1;
  config.attention_head_dim = 16;
  config.axes_dims_rope = {4, 6, 6};
  const QwenImageDiT model(config);
  constexpr int64_t kTokens = 512 * 512;
  const ForwardShape shape = {512 * 16, 512 * 16, {1}};
  EXPECT_GE(model.ActivationPeakBytes(shape, at::kFloat), kTokens * 64 * (4 + 4 + 2));
  EXPECT_GE(model.ActivationPeakBytes(shape, at::kBFloat16), kTokens * 64 * (2 + 2 + 4));
}

TEST(QwenImageDiTTest, TheWorkOfEachModuleIsWhatIsComputedUntilTheNextOne) {
  QwenImageDiTConfig config = TinyConfig();
  config.num_layers = 5;
  const QwenImageDiT model(config);
  const auto work_of = [&](const ForwardShape& shape) {
    const std::vector<double> work = model.WorkOf(shape, at::kFloat);
    EXPECT_EQ(work.size(), model.modules().size());
    std::map<std::string, double> by_path;
    for (size_t i = 0; i < work.size(); ++i) by_path[model.modules()[i].path] = work[i];
    for (const ModuleIndex module : model.unused_modules()) {
      const std::string& path = model.modules()[static_cast<size_t>(module)].path;
      EXPECT_EQ(by_path[path], 0) << path;
      by_path.erase(path);
    }
    return by_path;
  };
  auto small = work_of({64, 64, {5}}), large = work_of({256, 256, {5}}), pair = work_of({64, 64, {5, 5}});
  for (auto& [path, work] : small) {
    EXPECT_GT(work, 0) << path;
    EXPECT_EQ(pair[path], 2 * work) << path;
  }
  // Image tokens alone, text tokens alone, and the attention of all tokens to all behind the last of the projections.
  EXPECT_GT(large["img_in"], 4 * small["img_in"]);
  EXPECT_EQ(large["transformer_blocks.1.txt_mlp.net.2"], small["transformer_blocks.1.txt_mlp.net.2"]);
  EXPECT_GT(large["transformer_blocks.1.attn.add_v_proj"], 16 * small["transformer_blocks.1.attn.add_v_proj"]);
  for (const char* module : {"img_mod.1", "attn.add_v_proj", "attn.to_out.0", "txt_mlp.net.2"}) {
    const double second = large[absl::StrCat("transformer_blocks.1.", module)];
    for (int block = 2; block < 5; ++block) {
      const std::string path = absl::StrCat("transformer_blocks.", block, ".", module);
      if (block == 4 && !large.contains(path)) continue;  // The last block's text.
      EXPECT_EQ(large[path], second) << path;
    }
  }
}

// LibTorch's attention takes memory for each thread, and it serves bfloat16.
TEST(QwenImageDiTTest, TheActivationPeakFollowsTheNumberOfThreads) {
  ActivationMemory::InstallAllocator();
  QwenImageDiTConfig config;
  config.num_layers = 1;
  config.num_attention_heads = 4;
  config.joint_attention_dim = 64;
  const QwenImageDiT model(config);
  const int before = at::get_num_threads();
  for (const int threads : {1, 16, 48}) {
    at::set_num_threads(threads);
    for (const int64_t side : {64, 208, 448, 512}) {
      const ForwardInputs inputs = MakeInputs(config, 1, side, side, 21);
      const int64_t predicted = model.ActivationPeakBytes(ShapeOf(inputs), at::kBFloat16);
      const auto memory = std::make_shared<ActivationMemory>(int64_t{1} << 40);
      const ActivationMemory::Scope scope(memory);
      RunPass(model, inputs, DType::kBFloat16);
      EXPECT_LE(memory->peak_bytes(), predicted) << side << "x" << side << ", " << threads << " threads";
      if (side < 448) continue;  // Above, the attention is what takes most.
      constexpr int64_t kKernels = 8 << 20;
      EXPECT_GE(memory->peak_bytes(), (predicted - kKernels) * 9 / 10) << side << "x" << side << ", " << threads;
    }
  }
  at::set_num_threads(before);
}

}  // namespace
}  // namespace ditserve
