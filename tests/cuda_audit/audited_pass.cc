#include "tests/cuda_audit/audited_pass.h"

#include <ATen/Context.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "absl/synchronization/notification.h"
#include "core/base/executor.h"
#include "core/devices/device_module.h"
#include "core/memory/arena.h"
#include "core/memory/ledger.h"
#include "core/placement/profile.h"
#include "models/cuda_arithmetic.h"
#include "server/engine/tensor_link.h"
#include "tests/cuda_double/cuda_double.h"
#include "tests/testing/status_matchers.h"

namespace ditserve::cuda_audit {
namespace {

constexpr int64_t kHostBytes = 64 << 20;
constexpr int64_t kWeightBytes = 128 << 20;  // More than any module has.

// Gives out the same memory for all modules.
class SharedWeights final : public LeaseSource {
 public:
  SharedWeights(const std::vector<ModuleSpec>& modules, DType computation)
      : modules_(modules), computation_(computation) {
    EXPECT_EQ(cudaMalloc(&memory_, kWeightBytes), cudaSuccess);
  }
  ~SharedWeights() override { cudaFree(memory_); }

  void Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) override {
    (module == 0 ? first_ : last_) = cuda_double::ThreadSynchronizations();
    const ModuleSpec& spec = modules_[static_cast<size_t>(module)];
    const LeasedTensor weight = {static_cast<std::byte*>(memory_), ComputationDType(spec, computation_)};
    std::move(done)(Lease(LeasedTensors(spec.parameters.size(), weight), nullptr));
  }

  int64_t synchronizations() const { return last_ - first_; }

 private:
  const std::vector<ModuleSpec>& modules_;
  const DType computation_;
  void* memory_ = nullptr;
  int64_t first_ = 0, last_ = 0;
};

std::unique_ptr<Device> MakeCuda(int sm) {
  cuda_double::Options options;
  options.devices = 1;
  options.audit = true;
  options.sm = sm;
  cuda_double::Begin(options);
  at::globalContext().lazyInitDevice(at::kCUDA);
  std::string error;
  std::unique_ptr<Device> device(DitserveMakeDevice(0, Memory::kDevice, &error));
  EXPECT_NE(device, nullptr) << error;
  return device;
}

ForwardInputs Inputs(const QwenImageDiTConfig& config, int64_t side, int64_t tokens) {
  ForwardInputs inputs;
  inputs.latents = at::zeros({1, 16, side / 8, side / 8}, at::kBFloat16);
  inputs.timestep = at::zeros({1}, at::kBFloat16);
  inputs.prompt_emb = at::zeros({1, tokens, config.joint_attention_dim}, at::kBFloat16);
  return inputs;
}

}  // namespace

// Its device and executor.
class Audit::Server {
 public:
  explicit Server(int sm) : device_(MakeCuda(sm)) {
    OnExecutor([this] { stream_ = c10::cuda::getCurrentCUDAStream(0).stream(); });
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  cudaStream_t stream() const { return stream_; }

  void OnExecutor(absl::AnyInvocable<void() &&> work) {
    absl::Notification done;
    executor_->Post([&] {
      std::move(work)();
      done.Notify();
    });
    done.WaitForNotification();
  }

  // Whatever the pass took is given back when this returns.
  void Run(const QwenImageDiT& model, const ForwardInputs& inputs, at::ScalarType arithmetic, LeaseSource& weights) {
    auto link = TensorLink::Make(device_.get(), host_.get(), &ledger_, executor_.get());
    ASSERT_THAT(link, IsOk());
    absl::Notification done;
    const at::Device cuda(at::kCUDA, 0);
    Task<bool> pass = Pass(model.Forward(inputs, cuda, arithmetic, weights, link->get()), done);
    OnExecutor([&] { pass.Start(); });
    done.WaitForNotification();
    (*link)->Settle();
    OnExecutor([] {});
  }

 private:
  static Task<bool> Pass(Task<at::Tensor> forward, absl::Notification& done) {
    try {
      co_await std::move(forward);
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
    done.Notify();
    co_return true;
  }

  const std::unique_ptr<Device> device_;
  Ledger ledger_{{kHostBytes, kHostBytes}};
  const std::unique_ptr<Arena> host_ = *Arena::Make(device_.get(), Memory::kHost, int64_t{1} << 30);
  const std::unique_ptr<Executor> executor_ = std::make_unique<Executor>([this] {
    FixCudaArithmetic();
    EXPECT_THAT(device_->BeginOperations(), IsOk());
  });
  cudaStream_t stream_ = nullptr;
};

Audit::Audit(int sm) : server_(std::make_unique<Server>(sm)) {}
Audit::~Audit() = default;

Figures Audit::Pass(const QwenImageDiT& model, int64_t side, int64_t tokens, at::ScalarType arithmetic) {
  SharedWeights weights(model.modules(), DTypeOf(arithmetic));
  const ForwardInputs inputs = Inputs(model.config(), side, tokens);
  // Workspaces come with the first pass on a stream, and stay.
  server_->Run(model, Inputs(model.config(), 32, 1), arithmetic, weights);
  auto* const allocator = c10::cuda::CUDACachingAllocator::get();
  allocator->emptyCache();
  allocator->resetPeakStats(0);
  const auto before = allocator->getDeviceStats(0);
  const size_t launches_before = cuda_double::Launches().size();
  Record::Get().Clear();
  server_->Run(model, inputs, arithmetic, weights);

  Figures figures;
  const std::vector<cuda_double::Launch> launches = cuda_double::Launches();
  for (size_t i = launches_before; i < launches.size(); ++i) {
    ++figures.launches[launches[i].kernel];
    if (launches[i].stream != server_->stream()) ++figures.launches_elsewhere;
  }
  figures.stream = server_->stream();
  figures.synchronizations = weights.synchronizations();
  const auto after = allocator->getDeviceStats(0);
  figures.workspace_bytes = before.requested_bytes[0].current;
  figures.peak_bytes = after.requested_bytes[0].peak - figures.workspace_bytes;
  figures.allocated_bytes = after.allocated_bytes[0].peak;
  figures.reserved_bytes = after.reserved_bytes[0].peak;
  figures.predicted_bytes = model.ActivationPeakBytes(ShapeOf(inputs), arithmetic, at::kCUDA);
  figures.gemms = Record::Get().gemms();
  figures.refused = Record::Get().refused();
  return figures;
}

}  // namespace ditserve::cuda_audit
