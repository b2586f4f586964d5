#include "models/qwen_image_dit.h"

#include <ATen/ops/clamp.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/sub.h>

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "core/base/callback_awaiter.h"
#include "models/errors.h"
#include "models/meta_run.h"
#include "models/module_tree.h"
#include "models/ops.h"

namespace ditserve {
namespace {

// Modulation is made of chunks of the model's width. A stream of a block has shift, scale and gate of the attention,
// then of the MLP; the last block's text ends with the attention's shift and scale.
constexpr int64_t kChunks = 6;
int64_t TextChunks(bool last) { return last ? 2 : kChunks; }

// Where those of a block's image (stream 0) or text (1) begin in a timestep's row; those of the output.
int64_t FirstChunk(size_t block, int64_t stream) { return (2 * static_cast<int64_t>(block) + stream) * kChunks; }
int64_t OutputChunk(const QwenImageDiTConfig& config) {
  return FirstChunk(static_cast<size_t>(config.num_layers - 1), 1) + TextChunks(/*last=*/true);
}

// Those at `indices`.
template <typename Element>
std::vector<Element> Only(const std::vector<Element>& all, const std::vector<size_t>& indices) {
  std::vector<Element> some;
  for (const size_t index : indices) some.push_back(all[index]);
  return some;
}

// Views of the text tokens, and of the image tokens, which are the last.
Batch TextRows(const Batch& joint, const Batch& text) {
  Batch rows;
  for (size_t i = 0; i < joint.size(); ++i) rows.push_back(joint[i].narrow(0, 0, text[i].size(0)));
  return rows;
}
Batch ImageRows(const Batch& joint, const Batch& image) {
  Batch rows;
  for (size_t i = 0; i < joint.size(); ++i) {
    const int64_t tokens = image[i].size(0);
    rows.push_back(joint[i].narrow(0, joint[i].size(0) - tokens, tokens));
  }
  return rows;
}

// A tensor of these options with the same values, which `move` (TensorMover's ToDevice or ToHost) gives it. Throws the
// StatusError of a move that fails.
class Moved : public CallbackAwaiter<absl::Status> {
 public:
  using Move = decltype(&TensorMover::ToDevice);

  Moved(TensorMover& mover, Move move, const at::Tensor& tensor, const at::TensorOptions& options)
      : mover_(mover), move_(move), from_(tensor.contiguous()), to_(at::empty(tensor.sizes(), options)) {}
  bool await_suspend(std::coroutine_handle<> awaiter) {
    (mover_.*move_)(from_, to_, CallBack(awaiter));
    return Suspends();
  }
  at::Tensor await_resume() {
    const absl::Status status = CallbackAwaiter::await_resume();
    if (!status.ok()) throw StatusError(status);
    return std::move(to_);
  }

 private:
  TensorMover& mover_;
  const Move move_;
  const at::Tensor from_;
  at::Tensor to_;
};

// Which items have to be computed; the others get what their caches have.
Task<std::vector<size_t>> ReuseOrBegin(const Batch& signals, const Batch& image, StepCaches& caches,
                                       TensorMover* mover) {
  Batch differences;
  for (size_t i = 0; i < caches.size(); ++i) {
    at::Tensor difference = caches[i].Compare(signals[i]);
    if (difference.defined() && mover != nullptr) {
      const at::TensorOptions there = difference.options().device(at::kCPU);
      difference = co_await Moved(*mover, &TensorMover::ToHost, difference, there);
    }
    differences.push_back(std::move(difference));
  }
  std::vector<size_t> computed;
  for (size_t i = 0; i < caches.size(); ++i) {
    if (caches[i].Reuses(signals[i], differences[i])) {
      image[i].add_(caches[i].residual());
    } else {
      computed.push_back(i);
      caches[i].Begin(image[i]);
    }
  }
  co_return computed;
}

}  // namespace

int64_t ModulationElements(const QwenImageDiTConfig& config) { return (OutputChunk(config) + 2) * config.width(); }

QwenImageDiT::QwenImageDiT(const QwenImageDiTConfig& config) : config_(config) {
  const ModuleNode tree = QwenImageDiTTree(config);
  tree_ = Print(tree);
  modules_ = ListModules(tree);
  parts_ = FindParts();
  for (ParameterSpec& parameter : modules_[parts_.blocks.back().text.mod].parameters) {
    parameter.rows_read = TextChunks(/*last=*/true) * config.width();
  }
  // The order of execution is the order in which the code asks for weights.
  MetaLeaseSource leases(modules_, DType::kFloat32);
  WeightSource weights(leases, modules_, at::kMeta);
  Task<Batch> pass = Run(PrepareMeta({kPatchPixels, kPatchPixels, {1}}, config_, at::kFloat), parts_.blocks.size(),
                         nullptr, nullptr, weights);
  pass.Start();
  pass.Result();
  std::vector<ModuleSpec> ordered;
  for (const ModuleIndex index : leases.order()) ordered.push_back(std::exchange(modules_[index], {}));
  for (ModuleSpec& module : modules_) {
    if (module.path.empty()) continue;
    unused_modules_.push_back(static_cast<ModuleIndex>(ordered.size()));
    ordered.push_back(std::move(module));
  }
  modules_ = std::move(ordered);
  parts_ = FindParts();
  modulation_modules_ = {parts_.linear_1, parts_.linear_2, parts_.norm_out};
  for (const BlockModules& block : parts_.blocks) {
    modulation_modules_.insert(modulation_modules_.end(), {block.image.mod, block.text.mod});
  }
  std::sort(modulation_modules_.begin(), modulation_modules_.end());
}

QwenImageDiT::Parts QwenImageDiT::FindParts() const {
  absl::flat_hash_map<std::string, ModuleIndex> indices;
  for (size_t i = 0; i < modules_.size(); ++i) indices[modules_[i].path] = static_cast<ModuleIndex>(i);
  const auto at = [&](const std::string& path) { return indices.at(path); };
  Parts parts{at("time_text_embed.timestep_embedder.linear_1"),
              at("time_text_embed.timestep_embedder.linear_2"),
              at("txt_norm"),
              at("img_in"),
              at("txt_in"),
              at("norm_out.linear"),
              at("proj_out"),
              {}};
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const std::string block = absl::StrCat("transformer_blocks.", i, ".");
    parts.blocks.push_back(
        {{at(block + "img_mod.1"), at(block + "attn.to_q"), at(block + "attn.norm_q"), at(block + "attn.to_k"),
          at(block + "attn.norm_k"), at(block + "attn.to_v"), at(block + "attn.to_out.0"),
          at(block + "img_mlp.net.0.proj"), at(block + "img_mlp.net.2")},
         {at(block + "txt_mod.1"), at(block + "attn.add_q_proj"), at(block + "attn.norm_added_q"),
          at(block + "attn.add_k_proj"), at(block + "attn.norm_added_k"), at(block + "attn.add_v_proj"),
          at(block + "attn.to_add_out"), at(block + "txt_mlp.net.0.proj"), at(block + "txt_mlp.net.2")}});
  }
  return parts;
}

Task<at::Tensor> QwenImageDiT::Forward(const ForwardInputs& inputs, at::Device device, at::ScalarType arithmetic,
                                       LeaseSource& weights, TensorMover* mover, const Modulation* modulation,
                                       StepCaches* caches) const {
  PreparedInputs prepared = Prepare(inputs, config_, arithmetic, modulation);
  if (mover != nullptr) {
    std::vector<at::Tensor*> tensors;
    for (PreparedItem& item : prepared.items)
      tensors.insert(tensors.end(), {&item.patches, &item.prompt, &item.rotary});
    for (at::Tensor& time : prepared.times) tensors.push_back(&time);
    for (at::Tensor* tensor : tensors) {
      *tensor = co_await Moved(*mover, &TensorMover::ToDevice, *tensor, tensor->options().device(device));
    }
  }
  WeightSource source(weights, modules_, device);
  const Batch patches = co_await Run(std::move(prepared), parts_.blocks.size(), caches, mover, source);
  const at::Tensor output = at::stack(patches);
  const at::ScalarType dtype = inputs.latents.scalar_type();
  if (mover == nullptr) co_return output.to(dtype);
  co_return co_await Moved(*mover, &TensorMover::ToHost, output, at::TensorOptions(at::kCPU).dtype(dtype));
}

Task<Batch> QwenImageDiT::Run(PreparedInputs inputs, size_t blocks, StepCaches* caches, TensorMover* mover,
                              WeightSource& weights) const {
  Stream x = co_await Enter(std::move(inputs), weights);
  if (caches == nullptr) {
    Batch image_mod = co_await ModulateImage(x, 0, weights);
    x = co_await Blocks(std::move(x), 0, blocks, std::move(image_mod), weights);
  } else {
    x = co_await CachedBlocks(std::move(x), blocks, *caches, mover, weights);
  }
  x.text.clear();
  const int64_t width = config_.width();
  const Batch scale_shift = co_await Modulate(x, parts_.norm_out, OutputChunk(config_) * width, 2 * width, weights);
  const Batch normed = ModulatedLayerNorm(x.image, Chunk(scale_shift, width, 0), Chunk(scale_shift, width, 1));
  x.image.clear();
  co_return Linear(normed, co_await weights[parts_.proj_out]);
}

Task<QwenImageDiT::Stream> QwenImageDiT::Enter(PreparedInputs inputs, WeightSource& weights) const {
  Batch patches, prompts;
  Stream x;
  x.modulation = inputs.modulation;
  for (PreparedItem& item : inputs.items) {
    patches.push_back(std::move(item.patches));
    prompts.push_back(std::move(item.prompt));
    x.rotary.push_back(std::move(item.rotary));
    x.timesteps.push_back(item.timestep);
  }
  x.image = Linear(patches, co_await weights[parts_.img_in]);
  RmsNormInPlace(prompts, co_await weights[parts_.txt_norm]);
  x.text = Linear(prompts, co_await weights[parts_.txt_in]);
  if (inputs.times.empty()) co_return x;
  const Batch hidden = Silu(Linear(inputs.times, co_await weights[parts_.linear_1]));
  x.conditioning = Silu(Linear(hidden, co_await weights[parts_.linear_2]));
  co_return x;
}

Task<Batch> QwenImageDiT::Modulate(const Stream& x, ModuleIndex module, int64_t first, int64_t columns,
                                   WeightSource& weights) const {
  Batch rows;
  const size_t timesteps = x.modulation != nullptr ? x.modulation->rows.size() : x.conditioning.size();
  for (size_t i = 0; i < timesteps; ++i) {
    const bool kept = x.modulation != nullptr && x.modulation->rows[i].defined();
    rows.push_back(kept ? x.modulation->rows[i].narrow(0, first, columns).view({1, columns})
                        : at::empty({1, columns}, x.conditioning[i].options()));
  }
  if (!x.conditioning.empty()) LinearEachInto(x.conditioning, co_await weights[module], rows);
  Batch of_items;
  for (const size_t timestep : x.timesteps) of_items.push_back(rows[timestep]);
  co_return of_items;
}

Task<Batch> QwenImageDiT::ModulateImage(const Stream& x, size_t block, WeightSource& weights) const {
  const int64_t width = config_.width();
  return Modulate(x, parts_.blocks[block].image.mod, FirstChunk(block, 0) * width, kChunks * width, weights);
}

Task<QwenImageDiT::Stream> QwenImageDiT::Blocks(Stream x, size_t begin, size_t end, Batch image_mod,
                                                WeightSource& weights) const {
  for (size_t i = begin; i < end; ++i) {
    if (image_mod.empty()) image_mod = co_await ModulateImage(x, i, weights);
    x = co_await Block(std::move(x), i, std::exchange(image_mod, {}), weights);
  }
  co_return x;
}

Task<QwenImageDiT::Stream> QwenImageDiT::CachedBlocks(Stream x, size_t blocks, StepCaches& caches, TensorMover* mover,
                                                      WeightSource& weights) const {
  const bool after_first = caches.front().rule() == StepCacheRule::kFirstBlock;
  Batch image_mod = co_await ModulateImage(x, 0, weights);
  Batch signals;
  if (after_first) {
    for (const at::Tensor& item : x.image) signals.push_back(item.clone());
    x = co_await Block(std::move(x), 0, std::exchange(image_mod, {}), weights);
    for (size_t i = 0; i < signals.size(); ++i) at::sub_out(signals[i], x.image[i], signals[i]);
  } else {
    signals = ModulatedLayerNorm(x.image, Chunk(image_mod, config_.width(), 1), Chunk(image_mod, config_.width(), 0));
  }
  const std::vector<size_t> computed = co_await ReuseOrBegin(signals, x.image, caches, mover);
  signals.clear();
  if (computed.empty()) co_return x;
  // The others wait for these.
  Batch image = x.image;
  const std::vector<size_t> timesteps = x.timesteps;
  if (!image_mod.empty()) image_mod = Only(image_mod, computed);
  x.image = Only(x.image, computed);
  x.text = Only(x.text, computed);
  x.rotary = Only(x.rotary, computed);
  x.timesteps = Only(x.timesteps, computed);
  const size_t begin = after_first;
  x = co_await Blocks(std::move(x), begin, blocks, std::move(image_mod), weights);
  for (size_t i = 0; i < computed.size(); ++i) {
    caches[computed[i]].Keep(x.image[i]);
    image[computed[i]] = x.image[i];
  }
  x.image = std::move(image);
  x.timesteps = timesteps;
  co_return x;
}

// Image and text take turns: most of the computing is in the image's modules, half of the bytes are in the text's, and
// so those hide the moving of these.
//
// Of the last block the image goes on alone: of the text it needs keys and values, and nothing that comes of them.
Task<QwenImageDiT::Stream> QwenImageDiT::Block(Stream x, size_t index, Batch image_mod, WeightSource& weights) const {
  const bool last = index + 1 == parts_.blocks.size();
  const StreamModules &image = parts_.blocks[index].image, &text = parts_.blocks[index].text;
  const int64_t width = config_.width();
  const auto modulated = [width](const Batch& stream, const Batch& mod) {
    return ModulatedLayerNorm(stream, Chunk(mod, width, 1), Chunk(mod, width, 0));
  };
  const auto mlp_in = [width](const Batch& stream, const Batch& mod, const Weights& linear) {
    return ModulatedLinear(stream, Chunk(mod, width, 4), Chunk(mod, width, 3), linear);
  };

  // Projections are written where the attention reads them: text tokens, then image tokens.
  Projections joint;
  for (size_t i = 0; i < x.image.size(); ++i) {
    const int64_t image_rows = x.image[i].size(0), joint_rows = x.rotary[i].size(0);
    joint.q.push_back(at::empty({last ? image_rows : joint_rows, width}, x.image[i].options()));
    joint.k.push_back(at::empty({joint_rows, width}, x.image[i].options()));
    joint.v.push_back(at::empty({joint_rows, width}, x.image[i].options()));
  }
  Projections image_part = {ImageRows(joint.q, x.image), ImageRows(joint.k, x.image), ImageRows(joint.v, x.image)};
  Projections text_part = {{}, TextRows(joint.k, x.text), TextRows(joint.v, x.text)};
  if (!last) text_part.q = TextRows(joint.q, x.text);
  co_await Project(modulated(x.image, image_mod), std::move(image_part), image, weights);
  const Batch text_mod =
      co_await Modulate(x, text.mod, FirstChunk(index, 1) * width, TextChunks(last) * width, weights);
  co_await Project(modulated(x.text, text_mod), std::move(text_part), text, weights);

  Batch heads = Attend(std::move(joint), x.rotary);
  AddGatedLinear(x.image, Chunk(image_mod, width, 2), ImageRows(heads, x.image), co_await weights[image.to_out]);
  if (!last) AddGatedLinear(x.text, Chunk(text_mod, width, 2), TextRows(heads, x.text), co_await weights[text.to_out]);
  heads.clear();

  Batch image_hidden = mlp_in(x.image, image_mod, co_await weights[image.mlp_in]);
  GeluInPlace(image_hidden, config_.numerics);
  Batch text_hidden;
  if (!last) {
    text_hidden = mlp_in(x.text, text_mod, co_await weights[text.mlp_in]);
    GeluInPlace(text_hidden, config_.numerics);
  }
  AddGatedLinear(x.image, Chunk(image_mod, width, 5), image_hidden, co_await weights[image.mlp_out]);
  image_hidden.clear();
  if (!last) AddGatedLinear(x.text, Chunk(text_mod, width, 5), text_hidden, co_await weights[text.mlp_out]);

  if (config_.numerics == Numerics::kDiffusers && x.image[0].scalar_type() == at::kHalf) {
    for (at::Tensor& item : x.text) at::clamp_(item, -65504, 65504);
    for (at::Tensor& item : x.image) at::clamp_(item, -65504, 65504);
  }
  co_return x;
}

Task<QwenImageDiT::Projections> QwenImageDiT::Project(Batch x, Projections to, const StreamModules& modules,
                                                      WeightSource& weights) const {
  if (!to.q.empty()) {
    LinearInto(x, co_await weights[modules.to_q], to.q);
    RmsNormInPlace(to.q, co_await weights[modules.norm_q]);
  }
  LinearInto(x, co_await weights[modules.to_k], to.k);
  RmsNormInPlace(to.k, co_await weights[modules.norm_k]);
  LinearInto(x, co_await weights[modules.to_v], to.v);
  co_return to;
}

Batch QwenImageDiT::Attend(Projections joint, const Batch& rotary) const {
  Batch heads;
  for (size_t i = 0; i < rotary.size(); ++i) {
    const int64_t queries = joint.q[i].size(0);
    RotateInPlace(joint.q[i], rotary[i].narrow(0, rotary[i].size(0) - queries, queries));
    RotateInPlace(joint.k[i], rotary[i]);
    heads.push_back(Attention(joint.q[i], joint.k[i], joint.v[i], config_.attention_head_dim));
  }
  return heads;
}

StepCaches QwenImageDiT::MakeStepCaches(const StepCacheOptions& options, const ForwardShape& shape, at::Device device,
                                        at::ScalarType arithmetic) const {
  const int64_t patches = shape.height / kPatchPixels * (shape.width / kPatchPixels);
  const at::TensorOptions activations = at::TensorOptions(device).dtype(ActivationsIn(arithmetic));
  StepCaches caches;
  for (size_t i = 0; i < shape.text_tokens.size(); ++i) {
    caches.emplace_back(options, patches, config_.width(), activations);
  }
  return caches;
}

ModuleIndex QwenImageDiT::FirstLeftOut(StepCacheRule rule) const {
  const ModuleIndex first_mod = parts_.blocks.front().image.mod;
  if (rule == StepCacheRule::kTeaCache) return first_mod + 1;  // The signal takes no more than that.
  return parts_.blocks.size() > 1 ? parts_.blocks[1].image.mod : parts_.norm_out;
}

}  // namespace ditserve
