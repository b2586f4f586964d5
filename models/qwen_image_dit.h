#ifndef DITSERVE_MODELS_QWEN_IMAGE_DIT_H_
#define DITSERVE_MODELS_QWEN_IMAGE_DIT_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/task.h"
#include "core/residency/lease.h"
#include "core/storage/module.h"
#include "models/config.h"
#include "models/denoising/step_cache.h"
#include "models/forward_inputs.h"
#include "models/modulation.h"
#include "models/tensor_mover.h"
#include "models/weights.h"

namespace ditserve {

// The diffusion transformer of Qwen-Image, written once for every device and dtype.
//
// Holds no weights: each operation leases its module's. Every item of a batch is computed by itself between the same
// leases, so item i of a batch equals item i alone, bit for bit, and padding never changes a result.
//
// Thread safety: immutable; a Forward's coroutine runs on the executor.
class QwenImageDiT {
 public:
  explicit QwenImageDiT(const QwenImageDiTConfig& config);

  const QwenImageDiTConfig& config() const { return config_; }

  // Modules that hold parameters, in execution order (found by running Forward on meta tensors); last, those that no
  // output depends on.
  const std::vector<ModuleSpec>& modules() const { return modules_; }

  // Those of modules() that a Forward does without: the text of the last block goes no farther than its keys and
  // values.
  const std::vector<ModuleIndex>& unused_modules() const { return unused_modules_; }
  int modules_used() const { return static_cast<int>(modules_.size() - unused_modules_.size()); }

  // Those that a Forward whose Modulation is known does without, in execution order.
  const std::vector<ModuleIndex>& modulation_modules() const { return modulation_modules_; }

  // What print(model) shows in Python.
  const std::string& tree() const { return tree_; }

  // One pass in `arithmetic` dtype on `device`, to and from which `mover` takes tensors; null where that is the CPU. In
  // float8_e4m3fn Linears multiply so, where their weights are in it, and everything else is bfloat16.
  // Modules are acquired from `weights` in the order of modules(), each once, but for unused_modules() and, where
  // `modulation` is known, modulation_modules(); null: it is made and not kept. `caches`: of the loop whose step this
  // is, one for each item (MakeStepCaches); items whose cache reuses what it has do without the blocks, and where all
  // do, the pass does without their modules; null: everything is computed. Returns the packed sequence, shape
  // [B, H/16 * W/16, 64], on the CPU in the dtype of `latents`. A lease or a move that fails ends the pass: its status
  // is thrown as StatusError (models/errors.h). All that is referred to must outlive the task.
  Task<at::Tensor> Forward(const ForwardInputs& inputs, at::Device device, at::ScalarType arithmetic,
                           LeaseSource& weights, TensorMover* mover = nullptr, const Modulation* modulation = nullptr,
                           StepCaches* caches = nullptr) const;

  // Caches of a loop whose passes have inputs of this shape. They take memory as tensors on `device` do.
  StepCaches MakeStepCaches(const StepCacheOptions& options, const ForwardShape& shape, at::Device device,
                            at::ScalarType arithmetic) const;

  // The first module that a pass with such caches may do without. What comes before it is always taken.
  ModuleIndex FirstLeftOut(StepCacheRule rule) const;

  // Most bytes of activations alive at one time in a Forward of this shape on such a device, inputs and output there
  // and its loop's step caches included, weights not; found by running Forward on meta tensors, plus what kernels use
  // inside. (What cuBLAS works in is not a pass': it stays.)
  int64_t ActivationPeakBytes(const ForwardShape& shape, at::ScalarType arithmetic,
                              at::DeviceType device = at::kCPU) const;

  // Bytes of host memory, at most, that a Forward of this shape takes beside those on a device with memory of its own:
  // what it makes of its inputs before they go there, and the output.
  int64_t HostPeakBytes(const ForwardShape& shape, at::ScalarType arithmetic) const;

  // What a Forward of this shape computes on such a device, in multiply-adds or what takes as long, by module: from
  // when it is acquired until the next one is. Found by running Forward on meta tensors.
  std::vector<double> WorkOf(const ForwardShape& shape, at::ScalarType arithmetic,
                             at::DeviceType device = at::kCPU) const;

 private:
  // The modules of each part, by their index in modules().
  struct StreamModules {
    ModuleIndex mod, to_q, norm_q, to_k, norm_k, to_v, to_out, mlp_in, mlp_out;
  };
  struct BlockModules {
    StreamModules image, text;
  };
  struct Parts {
    ModuleIndex linear_1, linear_2, txt_norm, img_in, txt_in, norm_out, proj_out;
    std::vector<BlockModules> blocks;
  };

  // A batch on its way through the model; a tensor an item, but of conditioning.
  struct Stream {
    std::vector<at::Tensor> image;   // [H/16 * W/16, width]
    std::vector<at::Tensor> text;    // [T, width]
    std::vector<at::Tensor> rotary;  // Complex, text then image tokens, [T + H/16 * W/16, head_dim / 2]
    std::vector<size_t> timesteps;   // Whose modulation is each item's.
    std::vector<at::Tensor>
        conditioning;  // Of each timestep: SiLU of its embedding, [1, width]. Empty: modulation is known.
    const Modulation* modulation = nullptr;
  };

  // Queries, keys and values, [tokens, width]: of text and image tokens, of some, or views of either part.
  struct Projections {
    std::vector<at::Tensor> q, k, v;
  };

  Parts FindParts() const;
  Task<Stream> Enter(PreparedInputs inputs, WeightSource& weights) const;
  // Of each item: what `module` makes of its timestep, `columns` from `first` on of a row. Kept, or made here.
  Task<std::vector<at::Tensor>> Modulate(const Stream& x, ModuleIndex module, int64_t first, int64_t columns,
                                         WeightSource& weights) const;
  Task<std::vector<at::Tensor>> ModulateImage(const Stream& x, size_t block, WeightSource& weights) const;
  // `image_mod`: ModulateImage's, of the block.
  Task<Stream> Block(Stream x, size_t index, std::vector<at::Tensor> image_mod, WeightSource& weights) const;
  // Blocks from `begin` on. `image_mod`: of the first of them, where that was made.
  Task<Stream> Blocks(Stream x, size_t begin, size_t end, std::vector<at::Tensor> image_mod,
                      WeightSource& weights) const;
  // All blocks, or what caches have instead; the text is gone.
  Task<Stream> CachedBlocks(Stream x, size_t blocks, StepCaches& caches, TensorMover* mover,
                            WeightSource& weights) const;
  // Writes what the stream `x` brings to the attention, and returns it: no queries where `to` has none.
  Task<Projections> Project(std::vector<at::Tensor> x, Projections to, const StreamModules& modules,
                            WeightSource& weights) const;
  // Of all tokens, or the last ones.
  std::vector<at::Tensor> Attend(Projections joint, const std::vector<at::Tensor>& rotary) const;
  Task<std::vector<at::Tensor>> Run(PreparedInputs inputs, size_t blocks, StepCaches* caches, TensorMover* mover,
                                    WeightSource& weights) const;

  QwenImageDiTConfig config_;
  std::vector<ModuleSpec> modules_;
  std::vector<ModuleIndex> unused_modules_;
  std::vector<ModuleIndex> modulation_modules_;
  Parts parts_;
  std::string tree_;
};

}  // namespace ditserve

#endif  // DITSERVE_MODELS_QWEN_IMAGE_DIT_H_
