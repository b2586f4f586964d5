#ifndef DITSERVE_MODELS_DENOISING_STEP_CACHE_H_
#define DITSERVE_MODELS_DENOISING_STEP_CACHE_H_

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace ditserve {

// What a step cache compares with an earlier step (its signal), and what it then adds instead of computing it. Both are
// of the image alone: nothing after the last block reads the text.
enum class StepCacheRule : uint8_t {
  // First Block Cache, diffusers 0.42.1. Signal: what block 0 adds to the image. Compared with that of the last step
  // that was computed: reused if it differs by at most the threshold. Residual: what the blocks after block 0 add.
  kFirstBlock,
  // TeaCache as vLLM-Omni 0.30.0 has it for Qwen-Image. Signal: the image as block 0's attention gets it, normalized
  // and modulated. Compared with that of the step before; a polynomial of the difference adds up, and steps are
  // reused while the sum is below the threshold. Residual: what all blocks add.
  kTeaCache,
};

struct StepCacheOptions {
  // Blocks of the models that the polynomial below was fitted to.
  static constexpr int64_t kFittedBlocks = 60;

  StepCacheRule rule = StepCacheRule::kFirstBlock;
  // Above 0. diffusers' default for any model is 0.05, its example for Qwen-Image 0.2; that is vLLM-Omni's
  // TeaCache's.
  double threshold = 0.2;

  // Of TeaCache, highest power first: Qwen-Image's, from ComfyUI-TeaCache.
  std::array<double, 5> polynomial = {-450, 280, -45, 3.2, -0.02};
};

// Errors: InvalidArgument of field "threshold" or "polynomial": not above 0, NaN or infinite.
absl::Status CheckStepCache(const StepCacheOptions& options);

// Decides at each step of a loop whether what the blocks added at an earlier one will do. Approximate: a loop with a
// cache has other results than one without.
//
// One for each item and each branch of guidance: they differ, and an item of a batch equals that item alone. Its
// memory is taken at once and stays where it is: so each step finds the rest of a pass's memory as the step before did.
// At each step Compare, then Reuses; where that says no, Begin before the blocks and Keep behind them.
//
// Thread safety: none. Exceptions of LibTorch pass through; a cache that threw is not to be used again.
class StepCache {
 public:
  // For a picture of `image_tokens`, whose activations have `width` channels and `activations`' dtype and device.
  // `options`: checked before.
  StepCache(const StepCacheOptions& options, int64_t image_tokens, int64_t width, const at::TensorOptions& activations);

  StepCacheRule rule() const { return options_.rule; }

  // How far `signal`, [image_tokens, width], is from the earlier one that the rule compares it with, relative to the
  // magnitude of that: one element, where the signal is and in its dtype. Undefined at the first step.
  at::Tensor Compare(const at::Tensor& signal);

  // Whether the blocks may be left out at this step, and residual() be added instead. Never at the first one, and never
  // of a meta tensor, which has no value. `signal`: as Compare was given it. `difference`: what Compare returned, on
  // the CPU.
  bool Reuses(const at::Tensor& signal, const at::Tensor& difference);

  // The image before the blocks that may be left out, and behind them.
  void Begin(const at::Tensor& image);
  void Keep(const at::Tensor& image);

  // What the blocks added at the last step that was computed.
  const at::Tensor& residual() const { return residual_; }

  // Of the last step.
  bool reused() const { return reused_; }

 private:
  bool IsNear(double difference);

  const StepCacheOptions options_;
  const at::Tensor signal_;    // That the next one is compared with.
  const at::Tensor residual_;  // Between Begin and Keep the image before the blocks.
  bool begun_ = false;         // There was a step.
  bool reused_ = false;
  double distance_ = 0;  // Of TeaCache: the sum since a step was computed.
};

// Of the items of a loop's passes, all of one rule.
using StepCaches = std::vector<StepCache>;

}  // namespace ditserve

#endif  // DITSERVE_MODELS_DENOISING_STEP_CACHE_H_
