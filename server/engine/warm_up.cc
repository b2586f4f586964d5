#include "server/engine/warm_up.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/synchronization/notification.h"
#include "core/base/task.h"
#include "core/placement/profile.h"
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
  AnyWeights(const std::vector<ModuleSpec>& modules, DType computation, TensorMemory& memory)
      : modules_(modules), computation_(computation), memory_(memory) {}
  ~AnyWeights() override {
    if (data_ != nullptr) memory_.Free(data_);
  }

  void Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) override {
    if (data_ == nullptr) data_ = memory_.Allocate(WidestBytes());
    if (data_ == nullptr) return std::move(done)(absl::ResourceExhaustedError("no memory to warm up in"));
    const ModuleSpec& spec = modules_[static_cast<size_t>(module)];
    const LeasedTensor tensor = {data_, ComputationDType(spec, computation_)};
    std::move(done)(Lease(LeasedTensors(spec.parameters.size(), tensor), nullptr));
  }

 private:
  int64_t WidestBytes() const {
    int64_t bytes = 0;
    for (const ModuleSpec& module : modules_) {
      for (const ParameterSpec& parameter : module.parameters) {
        bytes = std::max(bytes, ElementCount(parameter.read_shape()) * SizeOf(ComputationDType(module, computation_)));
      }
    }
    return bytes;
  }

  const std::vector<ModuleSpec>& modules_;
  const DType computation_;
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

ForwardInputs SmallInputs(const QwenImageDiTConfig& config) {
  constexpr int64_t kSide = 128, kTokens = 32;
  ForwardInputs inputs;
  inputs.latents = at::zeros({1, config.out_channels, kSide / 8, kSide / 8}, at::kFloat);
  inputs.timestep = at::zeros({1}, at::kFloat);
  inputs.prompt_emb = at::zeros({1, kTokens, config.joint_attention_dim}, at::kFloat);
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
                     Numerics numerics, DType arithmetic) {
  const QwenImageDiT model(SmallConfig(numerics));
  const ForwardInputs inputs = SmallInputs(model.config());
  absl::Status status;
  absl::Notification done;
  std::optional<AnyWeights> weights(std::in_place, model.modules(), arithmetic, memory);
  Task<bool> pass = Then(model.Forward(inputs, TorchDevice(device), ScalarTypeOf(arithmetic), *weights, &link),
                         [&](absl::Status ended) {
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
  for (const DType arithmetic : {DType::kBFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat8E4M3}) {
    if (!device.CanCompute(arithmetic).ok()) continue;
    for (const Numerics numerics : {Numerics::kDiffSynth, Numerics::kDiffusers}) {
      if (status.ok()) status = RunPass(device, executor, link, *memory, numerics, arithmetic);
    }
  }
  OnExecutor(executor, [&] { device.ComputeIn(nullptr); });
  return status;
}

}  // namespace ditserve
