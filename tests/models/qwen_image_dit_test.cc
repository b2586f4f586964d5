#include "models/qwen_image_dit.h"

#include <ATen/Parallel.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "core/placement/profile.h"
#include "core/storage/model_weights.h"
#include "models/activation_memory.h"
#include "models/errors.h"
#include "models/meta_run.h"
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
TEST(QwenImageDiTTest, TheLastBlocksTextNeedsOnlyKeysAndValuesAndWhatModulatesThem) {
  const QwenImageDiT model(TinyConfig());
  std::vector<std::string> unused;
  for (const ModuleIndex module : model.unused_modules()) {
    unused.push_back(model.modules()[static_cast<size_t>(module)].path);
  }
  const std::string last = "transformer_blocks.1.";
  EXPECT_THAT(unused, ::testing::UnorderedElementsAre(last + "attn.add_q_proj", last + "attn.norm_added_q",
                                                      last + "attn.to_add_out", last + "txt_mlp.net.0.proj",
                                                      last + "txt_mlp.net.2"));
  for (const ModuleSpec& module : model.modules()) {
    for (const ParameterSpec& parameter : module.parameters) {
      const bool is_last_texts = module.path == last + "txt_mod.1";
      EXPECT_EQ(parameter.rows_read, is_last_texts ? std::optional(2 * model.config().width()) : std::nullopt)
          << module.path << "." << parameter.name;
    }
  }
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

// Rows of the timesteps, which nobody has written.
Modulation RowsFor(const QwenImageDiT& model, std::vector<float> timesteps, at::ScalarType dtype = at::kFloat) {
  Modulation modulation;
  for (size_t i = 0; i < timesteps.size(); ++i) {
    modulation.rows.push_back(at::full({ModulationElements(model.config())}, NAN, dtype));
  }
  modulation.timesteps = std::move(timesteps);
  return modulation;
}

TEST(QwenImageDiTTest, APassThatReadsModulationHasTheBitsOfOneThatMakesItAndTakesFewerModules) {
  const c10::InferenceMode no_autograd;
  const QwenImageDiT model(TinyConfig());
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat8E4M3}) {
    ForwardInputs inputs = MakeInputs(model.config(), 3, 32, 48, 4);
    inputs.timestep = at::stack({at::full({}, 0.5f), at::full({}, 0.25f), at::full({}, 0.5f)});
    const at::Tensor expected = RunPass(model, inputs, dtype);
    const at::ScalarType activations = dtype == DType::kFloat32 ? at::kFloat : at::kBFloat16;
    // One more than the items have, and another first.
    Modulation modulation = RowsFor(model, {0.125f, 0.25f, 0.5f}, activations);
    for (const bool known : {false, true}) {
      modulation.known = known;
      FakeLeaseSource weights(model.modules(),
                              [&](const ModuleSpec& module) { return ComputationDType(module, dtype); });
      if (known) weights.Skip(model.modulation_modules());
      Task<at::Tensor> pass = model.Forward(inputs, at::kCPU, ScalarTypeOf(dtype), weights, nullptr, &modulation);
      pass.Start();
      EXPECT_TRUE(at::equal(pass.Result(), expected)) << Name(dtype) << ", " << known;
      const auto makes = static_cast<int>(model.modulation_modules().size());
      EXPECT_EQ(weights.given(), model.modules_used() - (known ? makes : 0));
      EXPECT_EQ(makes, 2 * 2 + 3);
    }
    for (const at::Tensor& row : modulation.rows)
      EXPECT_FALSE(at::isnan(row).any().item<bool>()) << "all of it is made";
    // The one that no item had is what a pass at that timestep makes.
    Modulation alone = RowsFor(model, {0.125f}, activations);
    ForwardInputs other = MakeInputs(model.config(), 1, 32, 32, 2);
    other.timestep.fill_(0.125f);
    FakeLeaseSource weights(model.modules(), [&](const ModuleSpec& module) { return ComputationDType(module, dtype); });
    Task<at::Tensor> pass = model.Forward(other, at::kCPU, ScalarTypeOf(dtype), weights, nullptr, &alone);
    pass.Start();
    pass.Result();
    EXPECT_TRUE(at::equal(alone.rows[0], modulation.rows[0])) << Name(dtype);
  }
}

TEST(QwenImageDiTTest, TimestepsAreRoundedWhereTheNumericsRoundThem) {
  QwenImageDiTConfig config = TinyConfig();
  ForwardInputs inputs = MakeInputs(config, 2, 32, 32, 1);
  inputs.timestep = at::stack({at::full({}, 0.5001f), at::full({}, 0.5002f)});
  EXPECT_THAT(TimestepsOf(inputs, config, at::kBFloat16), ::testing::ElementsAre(0.5001f, 0.5002f));
  config.numerics = Numerics::kDiffusers;
  EXPECT_THAT(TimestepsOf(inputs, config, at::kBFloat16), ::testing::ElementsAre(0.5f, 0.5f));
  EXPECT_THAT(TimestepsOf(inputs, config, at::kFloat), ::testing::ElementsAre(0.5001f, 0.5002f));
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

// They may be a message's, which goes once the client has been told of a lost device. Of one patch the reordering of
// its values is a view of them.
TEST(QwenImageDiTTest, ReadsItsInputsBeforeItWaitsForTheFirstTime) {
  const QwenImageDiT model(TinyConfig());
  for (const int64_t side : {16, 48}) {
    const ForwardInputs inputs = MakeInputs(model.config(), 2, side, side, 4);
    const at::Tensor expected = RunPass(model, inputs);
    FakeLeaseSource weights(model.modules(), DType::kFloat32);
    weights.WaitForGive();
    Task<at::Tensor> pass = model.Forward(inputs, at::kCPU, at::kFloat, weights);
    pass.Start();
    for (const at::Tensor& tensor : {inputs.latents, inputs.prompt_emb, inputs.timestep}) tensor.fill_(NAN);
    while (weights.waiting()) weights.Give();
    ASSERT_TRUE(pass.done());
    EXPECT_TRUE(at::equal(pass.Result(), expected)) << side;
  }
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

class CachedPasses {
 public:
  CachedPasses(const QwenImageDiT& model, const StepCacheOptions& options, const ForwardInputs& inputs,
               DType dtype = DType::kFloat32)
      : model_(model),
        dtype_(dtype),
        caches_(model.MakeStepCaches(options, ShapeOf(inputs), at::kCPU, ScalarTypeOf(dtype))) {}

  // What a step gives; `skipped`: that none of its items computes the blocks.
  at::Tensor Step(const ForwardInputs& inputs, bool skipped = false) {
    const c10::InferenceMode no_autograd;
    FakeLeaseSource weights(model_.modules(),
                            [this](const ModuleSpec& module) { return ComputationDType(module, dtype_); });
    std::vector<ModuleIndex> left_out;
    const ModuleIndex ends = model_.modules_used() - 2;  // norm_out and proj_out are taken.
    for (ModuleIndex i = model_.FirstLeftOut(caches_.front().rule()); i < ends; ++i) left_out.push_back(i);
    if (skipped) weights.Skip(left_out);
    Task<at::Tensor> pass = model_.Forward(inputs, at::kCPU, ScalarTypeOf(dtype_), weights, nullptr, nullptr, &caches_);
    pass.Start();
    EXPECT_EQ(weights.given(), model_.modules_used() - static_cast<int>(skipped ? left_out.size() : 0));
    return pass.Result();
  }
  std::vector<bool> reused() const {
    std::vector<bool> reused;
    for (const StepCache& cache : caches_) reused.push_back(cache.reused());
    return reused;
  }

 private:
  const QwenImageDiT& model_;
  const DType dtype_;
  StepCaches caches_;
};

constexpr StepCacheRule kRules[] = {StepCacheRule::kFirstBlock, StepCacheRule::kTeaCache};

// A polynomial that is the difference itself.
StepCacheOptions CacheOptions(StepCacheRule rule, double threshold) { return {rule, threshold, {0, 0, 0, 1, 0}}; }

TEST(QwenImageDiTTest, AStepThatIsReusedAddsWhatBlocksAddedAndDoesWithoutTheirModules) {
  QwenImageDiTConfig config = TinyConfig();
  config.num_layers = 3;
  const QwenImageDiT model(config);
  const ForwardInputs inputs = MakeInputs(config, 2, 32, 48, 5);
  for (const StepCacheRule rule : kRules) {
    CachedPasses passes(model, CacheOptions(rule, 0.5), inputs);
    EXPECT_TRUE(at::equal(passes.Step(inputs), RunPass(model, inputs))) << "computed";
    EXPECT_EQ(passes.reused(), (std::vector<bool>{false, false}));
    // The same again: nothing differs but by what is rounded.
    EXPECT_TRUE(at::allclose(passes.Step(inputs, /*skipped=*/true), RunPass(model, inputs), 1e-5, 1e-5));
    EXPECT_EQ(passes.reused(), (std::vector<bool>{true, true}));
    ForwardInputs others = inputs;
    others.latents = -inputs.latents;
    EXPECT_TRUE(at::equal(passes.Step(others), RunPass(model, others))) << "too far";
    EXPECT_TRUE(at::allclose(passes.Step(others, /*skipped=*/true), RunPass(model, others), 1e-5, 1e-5))
        << "what was added last";
  }
}

TEST(QwenImageDiTTest, ItemsAreReusedEachByItself) {
  QwenImageDiTConfig config = TinyConfig();
  config.num_layers = 3;
  const QwenImageDiT model(config);
  const ForwardInputs inputs = MakeInputs(config, 3, 32, 48, 5);
  for (const StepCacheRule rule : kRules) {
    CachedPasses passes(model, CacheOptions(rule, 0.5), inputs);
    std::vector<CachedPasses> alone;
    for (int64_t i = 0; i < 3; ++i) alone.emplace_back(model, CacheOptions(rule, 0.5), ItemOf(inputs, i, 5));
    ForwardInputs step = inputs;
    for (int64_t changed = 0; changed < 4; ++changed) {
      if (changed < 3) step.latents[changed].neg_();
      const at::Tensor together = passes.Step(step, /*skipped=*/changed == 3);
      for (int64_t i = 0; i < 3; ++i) {
        const bool reused = changed > 0 && i != changed;
        EXPECT_EQ(passes.reused()[static_cast<size_t>(i)], reused) << i << " of step " << changed;
        const at::Tensor item = alone[static_cast<size_t>(i)].Step(ItemOf(step, i, 5), reused);
        EXPECT_TRUE(at::equal(together[i], item[0])) << i << " of step " << changed;
      }
    }
  }
}

TEST(QwenImageDiTTest, TheActivationPeakHasWhatStepCachesKeep) {
  QwenImageDiTConfig config = TinyConfig();
  config.num_attention_heads = 8;
  config.attention_head_dim = 64;
  config.axes_dims_rope = {16, 24, 24};
  config.num_layers = 3;
  const QwenImageDiT model(config);
  ActivationMemory::InstallAllocator();
  for (const StepCacheRule rule : kRules) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      const ForwardInputs inputs = MakeInputs(config, 2, 256, 256, 5);
      ForwardShape shape = ShapeOf(inputs);
      const int64_t without = model.ActivationPeakBytes(shape, ScalarTypeOf(dtype));
      shape.step_cache = rule;
      const int64_t predicted = model.ActivationPeakBytes(shape, ScalarTypeOf(dtype));
      const int64_t kept = 2 * 2 * (256 * 512 * SizeOf(dtype));  // Of each item a signal and a residual.
      EXPECT_GE(predicted, without + kept);
      const auto memory = std::make_shared<ActivationMemory>(predicted);
      const ActivationMemory::Scope scope(memory);
      CachedPasses passes(model, CacheOptions(rule, 0.5), inputs, dtype);
      ForwardInputs others = inputs;
      others.latents = -inputs.latents;
      EXPECT_NO_THROW(passes.Step(inputs)) << Name(dtype);
      EXPECT_NO_THROW(passes.Step(inputs, /*skipped=*/true)) << Name(dtype);
      EXPECT_NO_THROW(passes.Step(others)) << Name(dtype);
      constexpr int64_t kKernels = 8 << 20;
      EXPECT_GE(memory->peak_bytes(), (predicted - kKernels) * 9 / 10) << Name(dtype);
    }
  }
}

// Of meta tensors: nothing is moved but a difference of a step cache, whose value is as told.
class MetaMover final : public TensorMover {
 public:
  void ToDevice(const at::Tensor&, const at::Tensor&, Done done) override { std::move(done)(absl::OkStatus()); }
  void ToHost(const at::Tensor&, const at::Tensor& to, Done done) override {
    if (to.numel() == 1) to.fill_(near() ? 0 : 1e9);
    std::move(done)(absl::OkStatus());
  }
  std::function<bool()> near;
};

// On a device whose memory is a region, passes of a loop lie in one, whatever they take and whichever items reuse what
// their caches have. What is measured is one pass that makes its modulation and keeps none.
TEST(QwenImageDiTTest, PassesOfAnyKindFitTheRegionThatIsMeasured) {
  constexpr int64_t kKernels = 64 << 10;
  QwenImageDiTConfig config = TinyConfig();
  config.num_attention_heads = 8;
  config.attention_head_dim = 64;
  config.axes_dims_rope = {16, 24, 24};
  config.num_layers = 3;
  const QwenImageDiT model(config);
  const auto options = at::TensorOptions().device(at::kMeta);
  for (const auto& [side, batch, tokens] : {std::tuple(256, 3, 77), std::tuple(64, 4, 512), std::tuple(512, 1, 5)}) {
    const ForwardInputs inputs = MakeInputs(config, batch, side, side, tokens);
    for (const std::optional<StepCacheRule> rule :
         {std::optional<StepCacheRule>(), std::optional(kRules[0]), std::optional(kRules[1])}) {
      ForwardShape shape = ShapeOf(inputs);
      shape.timesteps = 3;
      shape.step_cache = rule;
      const int64_t measured = model.ActivationPeakBytes(shape, at::kFloat, at::kCUDA) - kKernels;
      // Of the first pass, which makes those of all steps; of later ones, where they are kept and where they are not.
      Modulation all{{0.5f, 0.4f, 0.3f}, {}, false}, known{{0.5f}, {}, true}, made{{0.5f}, {at::Tensor()}, false};
      for (int i = 0; i < 3; ++i) all.rows.push_back(at::empty({ModulationElements(config)}, options));
      known.rows.push_back(all.rows[0]);
      all.rows[1] = at::Tensor();
      MetaMemory memory(at::kCUDA);
      StepCaches caches;
      if (rule) caches = model.MakeStepCaches({.rule = *rule}, shape, at::kMeta, at::kFloat);
      uint32_t random = 1;
      MetaMover mover;
      mover.near = [&] { return ((random = random * 1664525 + 1013904223) >> 16) % 2 == 0; };
      for (int step = 0; step < 24; ++step) {
        MetaLeaseSource leases(model.modules(), DType::kFloat32);
        const Modulation& modulation = step == 0 ? all : step % 3 == 0 ? made : known;
        Task<at::Tensor> pass =
            model.Forward(inputs, at::kMeta, at::kFloat, leases, &mover, &modulation, rule ? &caches : nullptr);
        pass.Start();
        pass.Result();
        EXPECT_LE(memory.peak_bytes(), measured) << side << ", " << batch << " items, step " << step;
        if (memory.peak_bytes() > measured) break;
      }
      EXPECT_GE(memory.peak_bytes(), measured * 9 / 10) << side << ", " << batch << " items";
    }
  }
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

// Of the MLP of the image: x, the hidden layer that is four times as wide, and little beside.
TEST(QwenImageDiTTest, TheActivationPeakIsThatOfTheHiddenLayer) {
  QwenImageDiTConfig config;
  config.num_layers = 2;
  const QwenImageDiT model(config);
  constexpr int64_t kTokens = 64 * 64, kTextTokens = 5, kWidth = 3072, kKernels = 8 << 20;
  // A thirteenth of the rows at a time, and the rotary embedding of all.
  constexpr int64_t kBeside = (kTokens / 13 + 1) * kWidth * 4 + (kTokens + kTextTokens) * 64 * 8;
  const int64_t peak = model.ActivationPeakBytes({1024, 1024, {kTextTokens}}, at::kFloat) - kKernels;
  EXPECT_GE(peak, 5 * kTokens * kWidth * 4 + kBeside);
  EXPECT_LE(peak, 5 * kTokens * kWidth * 4 + kBeside + (3 << 20)) << "latents, text and modulation";
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

class WorkTest : public ::testing::TestWithParam<at::ScalarType> {};

INSTANTIATE_TEST_SUITE_P(QwenImageDiT, WorkTest, ::testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) { return std::string(Name(DTypeOf(info.param))); });

TEST_P(WorkTest, OfEachModuleIsWhatIsComputedUntilTheNextOne) {
  QwenImageDiTConfig config = TinyConfig();
  config.num_layers = 5;
  const QwenImageDiT model(config);
  const auto work_of = [&](const ForwardShape& shape) {
    const std::vector<double> work = model.WorkOf(shape, GetParam());
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
  auto small = work_of({64, 64, {5}}), large = work_of({256, 256, {5}}), pair = work_of({64, 64, {5, 5}, 2});
  std::map<std::string, int64_t> weights;  // Elements of those that are multiplied by.
  for (const ModuleSpec& module : model.modules()) {
    if (module.type == "Linear") weights[module.path] = ElementCount(module.parameters[0].read_shape());
  }
  for (auto& [path, work] : small) {
    EXPECT_GT(work, 0) << path;
    // Products of two items read a weight once, which takes as long as multiplying 24 rows by it.
    const auto weight = weights.find(path);
    EXPECT_EQ(pair[path], 2 * work - (weight == weights.end() ? 0 : 24 * weight->second)) << path;
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
  EXPECT_NEAR(large["transformer_blocks.4.txt_mod.1"] / large["transformer_blocks.1.txt_mod.1"], 1.0 / 3, 0.01);
}

// A GPU's products are LibTorch's, which have a row's own bits only one by one.
TEST_P(WorkTest, OnAGpuEachTimestepReadsTheWeightsOfModulation) {
  const QwenImageDiT model(TinyConfig());
  const std::vector<double> one = model.WorkOf({64, 64, {5}}, GetParam(), at::kCUDA);
  const std::vector<double> two = model.WorkOf({64, 64, {5, 5}, 2}, GetParam(), at::kCUDA);
  for (const ModuleIndex module : model.modulation_modules()) {
    const auto at = static_cast<size_t>(module);
    EXPECT_EQ(two[at], 2 * one[at]) << model.modules()[at].path;
  }
}

// Each thread keeps what it computes in: no pass takes more where there are more of them.
TEST(QwenImageDiTTest, TheActivationPeakDoesNotDependOnTheNumberOfThreads) {
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
      constexpr int64_t kKernels = 8 << 20;
      EXPECT_GE(memory->peak_bytes(), (predicted - kKernels) * 9 / 10) << side << "x" << side << ", " << threads;
    }
  }
  at::set_num_threads(before);
}

}  // namespace
}  // namespace ditserve
