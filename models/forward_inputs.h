#ifndef DITSERVE_MODELS_FORWARD_INPUTS_H_
#define DITSERVE_MODELS_FORWARD_INPUTS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "models/config.h"
#include "models/denoising/step_cache.h"
#include "models/modulation.h"

namespace ditserve {

inline constexpr int64_t kPatchPixels = 16;  // An 8x8 latent pixel, patched 2x2.

// Inputs of one forward pass. B images of H x W pixels, prompts of at most T tokens; all tensors on the CPU.
struct ForwardInputs {
  at::Tensor latents;          // Shape [B, 16, H/8, W/8], floating point.
  at::Tensor timestep;         // Shape [B], floating point; taken as it is.
  at::Tensor prompt_emb;       // Shape [B, T, joint_attention_dim], floating point.
  at::Tensor prompt_emb_mask;  // Shape [B, T] bool, or undefined: all tokens count.

  // The dtype that activations are asked to have; nothing: the pass's arithmetic, which is wider where a device has no
  // such arithmetic.
  std::optional<at::ScalarType> activations;
};

// Sizes that decide how much memory a forward pass takes.
struct ForwardShape {
  int64_t height = 0;                // Pixels.
  int64_t width = 0;                 // Pixels.
  std::vector<int64_t> text_tokens;  // Tokens that count, an entry for each item of the batch.
  int64_t timesteps = 1;             // Different ones whose modulation is computed.
  // Of a loop's pass: what that keeps between its steps is there too.
  std::optional<StepCacheRule> step_cache = std::nullopt;

  friend bool operator==(const ForwardShape&, const ForwardShape&) = default;
};

ForwardShape ShapeOf(const ForwardInputs& inputs);

// Each value once, by its bits, in the order in which they come.
std::vector<float> Distinct(const std::vector<float>& values);

// The timestep of each item, as the model sees it: rounded as activations are, where the model's numerics want that.
std::vector<float> TimestepsOf(const ForwardInputs& inputs, const QwenImageDiTConfig& config,
                               at::ScalarType arithmetic);

// The dtype of activations in a pass of such arithmetic.
at::ScalarType ActivationsIn(at::ScalarType arithmetic);

// What one image and its prompt bring into the model.
struct PreparedItem {
  at::Tensor patches;   // [H/16 * W/16, in_channels]
  at::Tensor prompt;    // [T, joint_attention_dim], tokens that count
  at::Tensor rotary;    // Complex, [T + H/16 * W/16, head_dim / 2]
  size_t timestep = 0;  // Of those of the pass.
};

// Inputs as the model takes them, in the activations' dtype.
struct PreparedInputs {
  std::vector<PreparedItem> items;
  std::vector<at::Tensor> times;  // Of each timestep, [1, 256]; empty where modulation is known.
  const Modulation* modulation = nullptr;
};

// On the CPU; the tensors are its own. `modulation`: as of QwenImageDiT::Forward.
PreparedInputs Prepare(const ForwardInputs& inputs, const QwenImageDiTConfig& config, at::ScalarType arithmetic,
                       const Modulation* modulation);

// What Prepare would make of inputs of this shape, without data.
PreparedInputs PrepareMeta(const ForwardShape& shape, const QwenImageDiTConfig& config, at::ScalarType arithmetic);

// Patches [B, H/16 * W/16, 64] to latents [B, 16, H/8, W/8].
at::Tensor Unpatchify(const at::Tensor& patches, const QwenImageDiTConfig& config, int64_t height, int64_t width);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_FORWARD_INPUTS_H_
