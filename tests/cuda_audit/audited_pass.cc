#include "tests/cuda_audit/audited_pass.h"

#include <ATen/Context.h>
#include <ATen/ops/_scaled_mm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAStream.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "absl/synchronization/notification.h"
#include "core/base/executor.h"
#include "core/base/status_macros.h"
#include "core/devices/device_module.h"
#include "core/memory/arena.h"
#include "core/memory/ledger.h"
#include "core/memory/tensor_region.h"
#include "core/placement/profile.h"
#include "models/cuda_arithmetic.h"
#include "models/errors.h"
#include "models/weights.h"
#include "server/engine/runtime_memory.h"
#include "server/engine/tensor_link.h"
#include "tests/cuda_double/cuda_double.h"
#include "tests/testing/status_matchers.h"

namespace ditserve::cuda_audit {
namespace {

constexpr int64_t kHostBytes = 64 << 20, kDeviceBytes = int64_t{4} << 30;
constexpr int64_t kWeightBytes = 256 << 20;  // More than any module has.

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

// Counts what tensors take at one time.
class Counted final : public TensorMemory {
 public:
  explicit Counted(std::shared_ptr<TensorRegion> region) : region_(std::move(region)) {}

  std::byte* Allocate(int64_t bytes) override {
    std::byte* const data = region_->Allocate(bytes);
    sizes_[data] = bytes;
    used_bytes_ += bytes;
    most_bytes_ = std::max(most_bytes_, used_bytes_);
    return data;
  }
  void Free(std::byte* data) override {
    used_bytes_ -= sizes_.extract(data).mapped();
    region_->Free(data);
  }

  int64_t used_bytes() const { return used_bytes_; }
  int64_t most_bytes() const { return most_bytes_; }

 private:
  const std::shared_ptr<TensorRegion> region_;
  std::map<std::byte*, int64_t> sizes_;
  int64_t used_bytes_ = 0, most_bytes_ = 0;
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

ForwardInputs Inputs(const QwenImageDiTConfig& config, const AuditedShape& of) {
  const at::ScalarType dtype = of.dtype == at::kFloat8_e4m3fn ? at::kBFloat16 : of.dtype;
  ForwardInputs inputs;
  inputs.latents = at::zeros({of.batch, 16, of.side / 8, of.side / 8}, dtype);
  inputs.timestep = at::zeros({of.batch}, dtype);
  inputs.prompt_emb = at::zeros({of.batch, of.tokens, config.joint_attention_dim}, dtype);
  return inputs;
}

}  // namespace

// Its device and executor.
class Audit::Server {
 public:
  explicit Server(int sm) : device_(MakeCuda(sm)) {
    OnExecutor([this] { stream_ = c10::cuda::getCurrentCUDAStream(0).stream(); });
    auto runtime = RuntimeMemory::Make(device_.get(), of_device_.get(), &ledger_, executor_.get(), link_.get());
    EXPECT_THAT(runtime, IsOk());
    runtime_ = *runtime;
  }
  ~Server() {
    link_->Settle();
    executor_.reset();
    runtime_->End();
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  cudaStream_t stream() const { return stream_; }
  int64_t runtime_bytes() const { return ledger_.Usage(Memory::kDevice).runtime_bytes; }

  void OnExecutor(absl::AnyInvocable<void() &&> work) {
    absl::Notification done;
    executor_->Post([&] {
      std::move(work)();
      done.Notify();
    });
    done.WaitForNotification();
  }

  // In a region that is large enough; where tensors lie does not depend on its size.
  absl::Status Run(const QwenImageDiT& model, const ForwardInputs& inputs, at::ScalarType dtype, LeaseSource& weights,
                   Figures& figures) {
    Buffer buffer = of_device_->Take(2 * figures.predicted_bytes);
    DITSERVE_RETURN_IF_ERROR(buffer.Prepare());
    const auto region =
        std::make_shared<TensorRegion>(absl::MakeSpan(buffer.data(), static_cast<size_t>(buffer.size_bytes())));
    const auto counted = std::make_shared<Counted>(region);
    const auto before = cuda_double::AllCalls();
    absl::Status status;
    {
      absl::Notification done;
      const at::Device cuda(at::kCUDA, 0);
      Task<bool> pass = Pass(model.Forward(inputs, cuda, dtype, weights, link_.get()), status, done);
      OnExecutor([&] {
        device_->ComputeIn(counted);
        pass.Start();
      });
      done.WaitForNotification();
      OnExecutor([&] { device_->ComputeIn(nullptr); });
    }
    auto after = cuda_double::AllCalls();
    for (const auto& [function, calls] : before) after[function] -= calls;
    figures.taken_of_the_device = after["cudaMalloc"] + after["cuMemCreate"];
    figures.kept_bytes = counted->used_bytes();
    figures.peak_bytes = counted->most_bytes();
    figures.region_bytes = region->most_bytes();
    return status;
  }

  bool DeviceComputesFloat8() const { return device_->CanCompute(DType::kFloat8E4M3).ok(); }
  bool MultipliesFloat8() {
    Buffer buffer = of_device_->Take(64 << 20);
    EXPECT_THAT(buffer.Prepare(), IsOk());
    bool multiplies = true;
    OnExecutor([&] {
      device_->ComputeIn(
          std::make_shared<TensorRegion>(absl::MakeSpan(buffer.data(), static_cast<size_t>(buffer.size_bytes()))));
      try {
        const auto options = at::TensorOptions(at::Device(at::kCUDA, 0));
        const at::Tensor rows = at::empty({16, 16}, options.dtype(at::kFloat8_e4m3fn));
        const at::Tensor scales = at::empty({16, 1}, options.dtype(at::kFloat));
        at::_scaled_mm(rows, rows.t(), scales, scales.t(), {}, {}, at::kBFloat16);
      } catch (const c10::Error&) {
        multiplies = false;
      }
      device_->ComputeIn(nullptr);
    });
    return multiplies;
  }

 private:
  static Task<bool> Pass(Task<at::Tensor> forward, absl::Status& status, absl::Notification& done) {
    try {
      co_await std::move(forward);
    } catch (...) {
      status = CatchStatus([] { throw; });
    }
    done.Notify();
    co_return true;
  }

  const std::unique_ptr<Device> device_;
  Ledger ledger_{{kHostBytes, kDeviceBytes}};
  const std::unique_ptr<Arena> host_ = *Arena::Make(device_.get(), Memory::kHost, int64_t{1} << 30);
  const std::unique_ptr<Arena> of_device_ = *Arena::Make(device_.get(), Memory::kDevice, 4 * kDeviceBytes);
  std::unique_ptr<Executor> executor_ = std::make_unique<Executor>([this] {
    FixCudaArithmetic();
    EXPECT_THAT(device_->BeginOperations(), IsOk());
  });
  const std::unique_ptr<TensorLink> link_ = *TensorLink::Make(device_.get(), host_.get(), &ledger_, executor_.get());
  std::shared_ptr<RuntimeMemory> runtime_;
  cudaStream_t stream_ = nullptr;
};

Audit::Audit(int sm) : server_(std::make_unique<Server>(sm)) {}
Audit::~Audit() = default;

bool Audit::DeviceComputesFloat8() const { return server_->DeviceComputesFloat8(); }
bool Audit::MultipliesFloat8() { return server_->MultipliesFloat8(); }

Figures Audit::Pass(const QwenImageDiT& model, const AuditedShape& of) {
  SharedWeights weights(model.modules(), DTypeOf(of.dtype));
  const ForwardInputs inputs = Inputs(model.config(), of);
  Figures figures;
  figures.predicted_bytes = model.ActivationPeakBytes(ShapeOf(inputs), of.dtype, at::kCUDA);
  const size_t launches_before = cuda_double::Launches().size();
  Record::Get().Clear();
  EXPECT_THAT(server_->Run(model, inputs, of.dtype, weights, figures), IsOk());

  const std::vector<cuda_double::Launch> launches = cuda_double::Launches();
  for (size_t i = launches_before; i < launches.size(); ++i) {
    ++figures.launches[launches[i].kernel];
    if (launches[i].stream != server_->stream()) ++figures.launches_elsewhere;
  }
  figures.stream = server_->stream();
  figures.synchronizations = weights.synchronizations();
  figures.runtime_bytes = server_->runtime_bytes();
  figures.gemms = Record::Get().gemms();
  figures.refused = Record::Get().refused();
  return figures;
}

absl::Status Audit::PassWithoutMemory(const QwenImageDiT& model, const AuditedShape& of, int64_t launch) {
  SharedWeights weights(model.modules(), DTypeOf(of.dtype));
  const ForwardInputs inputs = Inputs(model.config(), of);
  Figures figures;
  figures.predicted_bytes = model.ActivationPeakBytes(ShapeOf(inputs), of.dtype, at::kCUDA);
  cuda_double::FailCall("cudaLaunchKernel", launch, cudaErrorMemoryAllocation);
  return server_->Run(model, inputs, of.dtype, weights, figures);
}

}  // namespace ditserve::cuda_audit
