#include "server/engine/warm_up.h"

#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/synchronization/notification.h"
#include "core/base/task.h"
#include "core/residency/lease.h"
#include "core/storage/model_weights.h"
#include "models/errors.h"
#include "models/qwen_image_dit.h"
#include "models/weights.h"
#include "server/engine/torch_device.h"

namespace ditserve {
namespace {

// All modules have the same memory, which nobody wrote: what is computed does not matter.
class AnyWeights final : public LeaseSource {
 public:
  AnyWeights(const std::vector<ModuleSpec>& modules, DType dtype, TensorMemory& memory)
      : modules_(modules), dtype_(dtype), memory_(memory) {}
  ~AnyWeights() override {
    if (data_ != nullptr) memory_.Free(data_);
  }

  void Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) override {
    if (data_ == nullptr) data_ = memory_.Allocate(WidestBytes());
    if (data_ == nullptr) return std::move(done)(absl::ResourceExhaustedError("no memory to warm up in"));
    const size_t parameters = modules_[static_cast<size_t>(module)].parameters.size();
    std::move(done)(Lease(LeasedTensors(parameters, LeasedTensor{data_, dtype_}), nullptr));
  }

 private:
  int64_t WidestBytes() const {
    int64_t elements = 0;
    for (const ModuleSpec& module : modules_) {
      for (const ParameterSpec& parameter : module.parameters) {
        elements = std::max(elements, ElementCount(parameter.shape));
      }
    }
    return elements * SizeOf(dtype_);
  }

  const std::vector<ModuleSpec>& modules_;
  const DType dtype_;
  TensorMemory& memory_;
  std::byte* data_ = nullptr;
};

// As small as a model can be whose heads are as wide as the real one's.
QwenImageDiTConfig SmallConfig(Numerics numerics) {
  QwenImageDiTConfig config;
  config.num_layers = 1;
  config.num_attention_heads = 2;
  config.joint_attention_dim = config.width();
  config.numerics = numerics;
  return config;
}

ForwardInputs SmallInputs(const QwenImageDiTConfig& config, at::ScalarType dtype) {
  constexpr int64_t kSide = 128, kTokens = 32;
  ForwardInputs inputs;
  inputs.latents = at::zeros({1, config.out_channels, kSide / 8, kSide / 8}, dtype);
  inputs.timestep = at::zeros({1}, at::kFloat);
  inputs.prompt_emb = at::zeros({1, kTokens, config.joint_attention_dim}, dtype);
  return inputs;
}

Task<bool> Then(Task<at::Tensor> pass, absl::AnyInvocable<void(absl::Status) &&> done) {
  absl::Status status;
  try {
    co_await std::move(pass);
  } catch (...) {
    status = CatchStatus([] { throw; });
  }
  std::move(done)(std::move(status));
  co_return true;
}

void OnExecutor(Executor& executor, absl::AnyInvocable<void() &&> work) {
  absl::Notification done;
  executor.Post([&] {
    std::move(work)();
    done.Notify();
  });
  done.WaitForNotification();
}

absl::Status RunPass(const Device& device, Executor& executor, TensorMover& link, TensorMemory& memory,
                     Numerics numerics, at::ScalarType dtype) {
  const QwenImageDiT model(SmallConfig(numerics));
  const ForwardInputs inputs = SmallInputs(model.config(), dtype);
  absl::Status status;
  absl::Notification done;
  std::optional<AnyWeights> weights(std::in_place, model.modules(), DTypeOf(dtype), memory);
  Task<bool> pass = Then(model.Forward(inputs, TorchDevice(device), dtype, *weights, &link), [&](absl::Status ended) {
    status = std::move(ended);
    done.Notify();
  });
  executor.Post([&] { pass.Start(); });
  done.WaitForNotification();
  OnExecutor(executor, [] { /* It is through with the pass. */ });
  return status;
}

}  // namespace

absl::Status WarmUp(Device& device, Executor& executor, TensorMover& link,
                    const std::shared_ptr<TensorMemory>& memory) {
  OnExecutor(executor, [&] { device.ComputeIn(memory); });
  absl::Status status;
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
    for (const Numerics numerics : {Numerics::kDiffSynth, Numerics::kDiffusers}) {
      if (status.ok()) status = RunPass(device, executor, link, *memory, numerics, dtype);
    }
  }
  OnExecutor(executor, [&] { device.ComputeIn(nullptr); });
  return status;
}

}  // namespace ditserve
