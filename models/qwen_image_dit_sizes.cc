// What a pass of a shape takes and computes, found without computing it.
#include <ATen/ops/stack.h>

#include <algorithm>

#include "models/meta_run.h"
#include "models/ops.h"
#include "models/qwen_image_dit.h"

namespace ditserve {
namespace {

// What kernels allocate inside beyond what operations count themselves: on a CPU, rows that they widen to float32; on a
// GPU, figures of a row that it normalizes, and up to 512 bytes for each of a few tensors.
constexpr int64_t kKernelBytes = 8 << 20, kCudaKernelBytes = 64 << 10;

}  // namespace

int64_t QwenImageDiT::ActivationPeakBytes(const ForwardShape& shape, at::ScalarType arithmetic,
                                          at::DeviceType device) const {
  MetaLeaseSource leases(modules_, DTypeOf(arithmetic));
  WeightSource weights(leases, modules_, at::kMeta);
  MetaMemory memory(device);
  const auto run = [&](const ForwardShape& of_pass, StepCaches* caches) {
    // Every block takes the same memory; the second begins with what the first leaves.
    const size_t blocks = std::min<size_t>(2, parts_.blocks.size());
    Task<Batch> pass = Run(PrepareMeta(of_pass, config_, arithmetic), blocks, caches, nullptr, weights);
    pass.Start();
    const Batch patches = pass.Result();
    // In a dtype of its own, as the latents' may be.
    const at::Tensor output = at::stack(patches).to(arithmetic == at::kFloat ? at::kBFloat16 : at::kFloat);
  };
  if (shape.step_cache) {
    StepCaches caches = MakeStepCaches({.rule = *shape.step_cache}, shape, at::kMeta, arithmetic);
    run(shape, &caches);
    // Later ones compare signals, and make the modulation of their own timestep at most.
    ForwardShape later = shape;
    later.timesteps = 1;
    run(later, &caches);
  } else {
    run(shape, nullptr);
  }
  return memory.peak_bytes() + (device == at::kCUDA ? kCudaKernelBytes : kKernelBytes);
}

int64_t QwenImageDiT::HostPeakBytes(const ForwardShape& shape, at::ScalarType arithmetic) const {
  constexpr int64_t kSmallTensors = 1 << 20;  // Masks, positions, timesteps.
  int64_t prepared = 0, making = 0, output = 0;
  const PreparedInputs inputs = PrepareMeta(shape, config_, arithmetic);
  for (const PreparedItem& item : inputs.items) {
    const auto in_float = [](const at::Tensor& tensor) { return tensor.numel() * static_cast<int64_t>(sizeof(float)); };
    const auto bytes = [](const at::Tensor& tensor) { return static_cast<int64_t>(tensor.nbytes()); };
    prepared += bytes(item.patches) + bytes(item.prompt) + bytes(item.rotary);
    // One after the other, from inputs in a dtype of their own; rotations from those of each axis.
    making = std::max(making, 2 * in_float(item.patches) + in_float(item.prompt) + 3 * bytes(item.rotary));
    output += in_float(item.patches);
  }
  return prepared + making + output + kSmallTensors;
}

std::vector<double> QwenImageDiT::WorkOf(const ForwardShape& shape, at::ScalarType arithmetic,
                                         at::DeviceType device) const {
  MetaLeaseSource leases(modules_, DTypeOf(arithmetic));
  WeightSource weights(leases, modules_, at::kMeta);
  const MetaMemory memory(device);  // Whose operations these are.
  Task<Batch> pass = Run(PrepareMeta(shape, config_, arithmetic), std::min<size_t>(2, parts_.blocks.size()), nullptr,
                         nullptr, weights);
  pass.Start();
  pass.Result();
  const std::vector<double> computed = leases.Work();
  std::vector<double> work(modules_.size());
  const auto of = [&work](ModuleIndex module) -> double& { return work[static_cast<size_t>(module)]; };
  for (size_t i = 0; i < computed.size(); ++i) of(leases.order()[i]) = computed[i];
  // Every block computes the same, the last but for what it leaves out.
  using Of = StreamModules;
  for (size_t i = 2; i < parts_.blocks.size(); ++i) {
    for (const auto stream : {&BlockModules::image, &BlockModules::text}) {
      for (const auto module : {&Of::mod, &Of::to_q, &Of::norm_q, &Of::to_k, &Of::norm_k, &Of::to_v, &Of::to_out,
                                &Of::mlp_in, &Of::mlp_out}) {
        of(parts_.blocks[i].*stream.*module) = of(parts_.blocks[1].*stream.*module);
      }
    }
  }
  if (parts_.blocks.size() > 2) {  // Nearly: what norms the text is as large as in the others.
    const ModuleIndex last = parts_.blocks.back().text.mod;
    const ParameterSpec& weight = modules_[last].parameters[0];
    of(last) *= static_cast<double>(weight.read_shape()[0]) / static_cast<double>(weight.shape[0]);
  }
  for (const ModuleIndex module : unused_modules_) of(module) = 0;
  return work;
}

}  // namespace ditserve
