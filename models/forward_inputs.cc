#include "models/forward_inputs.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/nonzero.h>

#include <algorithm>
#include <bit>

#include "models/ops.h"
#include "models/rope.h"
#include "models/weights.h"

namespace ditserve {
namespace {

// "B C (H P) (W Q) -> B (H W) (C P Q)" of one item.
at::Tensor Patchify(const at::Tensor& latents, int64_t patch) {
  const int64_t channels = latents.size(0), rows = latents.size(1) / patch, columns = latents.size(2) / patch;
  return latents.reshape({channels, rows, patch, columns, patch})
      .permute({1, 3, 0, 2, 4})
      .reshape({rows * columns, channels * patch * patch});
}

std::vector<float> Floats(const at::Tensor& x) {
  const at::Tensor floats = x.to(at::kFloat).contiguous();
  const float* const begin = floats.const_data_ptr<float>();
  return {begin, begin + floats.numel()};
}

// Where the value is, by its bits; values.size() if nowhere.
size_t IndexOf(const std::vector<float>& values, float value) {
  const auto is_it = [value](float each) { return std::bit_cast<uint32_t>(each) == std::bit_cast<uint32_t>(value); };
  return static_cast<size_t>(std::find_if(values.begin(), values.end(), is_it) - values.begin());
}

}  // namespace

at::ScalarType ActivationsIn(at::ScalarType arithmetic) { return ScalarTypeOf(ActivationDType(DTypeOf(arithmetic))); }

std::vector<float> Distinct(const std::vector<float>& values) {
  std::vector<float> distinct;
  for (const float value : values) {
    if (IndexOf(distinct, value) == distinct.size()) distinct.push_back(value);
  }
  return distinct;
}

ForwardShape ShapeOf(const ForwardInputs& inputs) {
  ForwardShape shape{inputs.latents.size(2) * 8, inputs.latents.size(3) * 8, {}};
  for (int64_t i = 0; i < inputs.latents.size(0); ++i) {
    const bool masked = inputs.prompt_emb_mask.defined();
    shape.text_tokens.push_back(masked ? inputs.prompt_emb_mask[i].sum().item<int64_t>() : inputs.prompt_emb.size(1));
  }
  // (Rounded, some may be equal.)
  shape.timesteps = static_cast<int64_t>(Distinct(Floats(inputs.timestep)).size());
  return shape;
}

// diffusers first rounds the timestep to the activations' dtype, and goes on in float32. Where they are asked for in a
// narrow dtype it is rounded so, whatever this device computes in.
std::vector<float> TimestepsOf(const ForwardInputs& inputs, const QwenImageDiTConfig& config,
                               at::ScalarType arithmetic) {
  const at::ScalarType activations = inputs.activations.value_or(ActivationsIn(arithmetic));
  const bool narrow = activations == at::kBFloat16 || activations == at::kHalf;
  const bool rounds = config.numerics == Numerics::kDiffusers && narrow;
  return Floats(rounds ? inputs.timestep.to(activations) : inputs.timestep);
}

PreparedInputs Prepare(const ForwardInputs& inputs, const QwenImageDiTConfig& config, at::ScalarType arithmetic,
                       const Modulation* modulation) {
  const at::ScalarType dtype = ActivationsIn(arithmetic);
  const int64_t rows = inputs.latents.size(2) / config.patch_size;
  const int64_t columns = inputs.latents.size(3) / config.patch_size;
  const std::vector<float> of_items = TimestepsOf(inputs, config, arithmetic);
  const std::vector<float> timesteps = modulation != nullptr ? modulation->timesteps : Distinct(of_items);
  PreparedInputs prepared;
  prepared.modulation = modulation;
  if (modulation == nullptr || !modulation->known) {
    for (const float timestep : timesteps) prepared.times.push_back(TimeChannels(at::full({1}, timestep)).to(dtype));
  }
  for (int64_t i = 0; i < inputs.latents.size(0); ++i) {
    at::Tensor prompt = inputs.prompt_emb[i];
    at::Tensor positions = at::arange(prompt.size(0), at::kFloat);
    if (inputs.prompt_emb_mask.defined()) {
      // Tokens that do not count are left out; the others keep their place. So diffusers' masked attention, which
      // hides their keys, gives the same image.
      const at::Tensor kept = at::nonzero(inputs.prompt_emb_mask[i]).view(-1);
      prompt = prompt.index_select(0, kept);
      positions = kept.to(at::kFloat);
    }
    const size_t timestep = IndexOf(timesteps, of_items[static_cast<size_t>(i)]);
    TORCH_INTERNAL_ASSERT(timestep < timesteps.size());
    // Copies, as inputs may go while the pass is under way: of one patch Patchify gives a view.
    at::Tensor patches = Patchify(inputs.latents[i], config.patch_size);
    const bool is_view = patches.is_alias_of(inputs.latents);
    prepared.items.push_back({patches.to(dtype, /*non_blocking=*/false, /*copy=*/is_view),
                              prompt.to(dtype, /*non_blocking=*/false, /*copy=*/true),
                              JointRotary(positions, rows, columns, config.axes_dims_rope), timestep});
  }
  return prepared;
}

PreparedInputs PrepareMeta(const ForwardShape& shape, const QwenImageDiTConfig& config, at::ScalarType arithmetic) {
  const auto options = at::TensorOptions().device(at::kMeta).dtype(ActivationsIn(arithmetic));
  const int64_t patches = shape.height / kPatchPixels * (shape.width / kPatchPixels);
  PreparedInputs prepared;
  for (const int64_t tokens : shape.text_tokens) {
    prepared.items.push_back(
        {at::empty({patches, config.in_channels}, options), at::empty({tokens, config.joint_attention_dim}, options),
         at::empty({tokens + patches, config.attention_head_dim / 2}, options.dtype(at::kComplexFloat))});
  }
  for (int64_t i = 0; i < shape.timesteps; ++i) prepared.times.push_back(at::empty({1, kTimeChannels}, options));
  return prepared;
}

at::Tensor Unpatchify(const at::Tensor& patches, const QwenImageDiTConfig& config, int64_t height, int64_t width) {
  const int64_t rows = height / kPatchPixels, columns = width / kPatchPixels, patch = config.patch_size;
  return patches.reshape({patches.size(0), rows, columns, config.out_channels, patch, patch})
      .permute({0, 3, 1, 4, 2, 5})
      .reshape({patches.size(0), config.out_channels, rows * patch, columns * patch});
}

}  // namespace ditserve
