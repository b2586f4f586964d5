// The real model in the real engine on the CUDA device: LibTorch's CPU kernels, late, on the double's streams.
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/base/executor.h"
#include "core/memory/arena.h"
#include "core/memory/ledger.h"
#include "core/memory/tensor_region.h"
#include "server/engine/tensor_link.h"
#include "tests/cuda_double/engine_on_cuda.h"

namespace ditserve {
namespace {

constexpr int64_t kMiB = 1 << 20;

TEST_F(CudaEngineTest, EveryProfileGivesWhatTheCpuGivesBitForBit) {
  const std::unique_ptr<Device> cpu = MakeCpuDevice(CpuBFloat16::kNative), gpu = MakeGpu();
  const auto on_cpu = MakeEngineOn(*cpu), on_gpu = MakeEngineOn(*gpu);
  for (const Profile& profile : profiles_) {
    const ForwardCall call = MakeCall(profile);
    const at::Tensor output = Output(*on_gpu, call);
    EXPECT_TRUE(at::equal(output, Output(*on_cpu, call))) << profile.name;
    EXPECT_TRUE(at::isfinite(output).all().item<bool>()) << profile.name;
  }
}

// On the CPU our own kernels compute products and attention in float32, on CUDA LibTorch's do.
TEST_F(CudaEngineTest, Float32IsAsCloseToTheCpuAsSumsInAnotherOrderAre) {
  const std::unique_ptr<Device> cpu = MakeCpuDevice(CpuBFloat16::kFloat32), gpu = MakeGpu();
  Profile profile = ProfileNamed("disk");
  profile.preparing.dtype = profile.computation.dtype = DType::kFloat32;
  const ForwardCall call = MakeCall(profile);
  EXPECT_TRUE(at::allclose(Output(*MakeEngineOn(*gpu), call), Output(*MakeEngineOn(*cpu), call), 1e-5, 1e-5));
}

TEST_F(CudaEngineTest, RidersOfOneWindowGetWhatEachGetsAlone) {
  int most = 0;
  for (uint32_t seed = 1; seed <= 16; ++seed) {
    Begin(seed);
    const int riders = 1 + static_cast<int>(seed % 8);
    most = std::max(most, Ride(seed, riders));
    End();
  }
  EXPECT_EQ(most, 8);
}

TEST_F(CudaEngineTest, BudgetsThatChangeNeverChangeAResult) {
  for (uint32_t seed = 1; seed <= 12; ++seed) {
    Begin(seed);
    Ride(seed, 4, [&](Engine& engine, int rider) {
      const int64_t bytes = (24 + 8 * (static_cast<int64_t>(seed + static_cast<uint32_t>(rider)) % 5)) * kMiB;
      EXPECT_THAT(engine.SetBudget(Memory::kDevice, bytes), IsOk());
    });
    End();
  }
}

TEST_F(CudaEngineTest, CancellingAtAnyModuleLeavesNothingBehind) {
  const std::unique_ptr<Device> gpu = MakeGpu();
  const auto engine = MakeEngineOn(*gpu, 64 * kMiB);
  const at::Tensor expected = Output(*engine, MakeCall(ProfileNamed("disk")));
  const int modules = static_cast<int>(engine->Models()[0].model->modules().size());
  for (int at = 0; at < modules; at += 3) {
    std::shared_ptr<ForwardHandle> handle;
    absl::Notification submitted;
    const auto cancelled = Send(*engine, MakeCall(ProfileNamed("disk")), [&](const ForwardProgress& progress) {
      submitted.WaitForNotification();
      if (progress.modules_done >= at) handle->Cancel(absl::CancelledError("enough"));
    });
    handle = cancelled->handle;
    const auto kept = Send(*engine, MakeCall(ProfileNamed("disk")));
    submitted.Notify();
    EXPECT_THAT(cancelled->Wait(), StatusIs(absl::StatusCode::kCancelled, "enough")) << at;
    ASSERT_THAT(kept->Wait(), IsOk());
    EXPECT_TRUE(at::equal(kept->result->output, expected)) << at;
  }
}

TEST_F(CudaEngineTest, TheExecutorWaitsForNoDevice) {
  const std::unique_ptr<Device> gpu = MakeGpu();
  const auto engine = MakeEngineOn(*gpu, 64 * kMiB);
  for (const Profile& profile : profiles_) {
    int64_t before = -1, after = -1;
    absl::Notification ended;
    engine->Submit(
        MakeCall(profile),
        [&](const ForwardProgress& progress) {
          if (progress.modules_done == 0) before = cuda_double::ThreadSynchronizations();
        },
        [&](absl::StatusOr<ForwardResult> result) {
          EXPECT_THAT(result, IsOk());
          after = cuda_double::ThreadSynchronizations();
          ended.Notify();
        });
    ended.WaitForNotification();
    EXPECT_EQ(after - before, 0) << profile.name;
  }
}

TEST_F(CudaEngineTest, ATensorOfMorePiecesThanThereAreSlotsGoesThereAndBackAroundAnOperation) {
  const std::unique_ptr<Device> gpu = MakeGpu();
  Ledger ledger({64 * kMiB, 64 * kMiB});
  const std::unique_ptr<Arena> host_memory = *Arena::Make(gpu.get(), Memory::kHost, 1024 * kMiB);
  auto executor = std::make_unique<Executor>([] {});
  const std::unique_ptr<TensorLink> link = *TensorLink::Make(gpu.get(), host_memory.get(), &ledger, executor.get());
  const at::Tensor host = at::arange(3 * TensorLink::kSlots * TensorLink::kSlotBytes / 4 + 5, at::kFloat);
  const at::Tensor back = at::zeros_like(host);
  at::Tensor there;
  absl::Notification arrived;
  const std::unique_ptr<Arena> of_device = *Arena::Make(gpu.get(), gpu->memory(), 1024 * kMiB);
  Buffer buffer = of_device->Take(32 * kMiB);
  EXPECT_THAT(buffer.Prepare(), IsOk());
  const auto memory =
      std::make_shared<TensorRegion>(absl::MakeSpan(buffer.data(), static_cast<size_t>(buffer.size_bytes())));
  executor->Post([&] {
    EXPECT_THAT(gpu->BeginOperations(), IsOk());
    gpu->ComputeIn(memory);
    there = at::empty(host.sizes(), host.options().device(at::kCUDA, 0));
    link->ToDevice(host, there, [&](const absl::Status& status) {
      EXPECT_THAT(status, IsOk());
      there.mul_(2);
      link->ToHost(there, back, [&](const absl::Status& status) {
        EXPECT_THAT(status, IsOk());
        arrived.Notify();
      });
    });
  });
  arrived.WaitForNotification();
  EXPECT_TRUE(at::equal(back, host.mul(2)));
  link->Settle();
  executor.reset();
}

TEST_F(CudaEngineTest, EnginesOfTwoDevicesComputeAtOnce) {
  const std::unique_ptr<Device> first = MakeGpu(0), second = MakeGpu(1);
  const auto on_first = MakeEngineOn(*first, 64 * kMiB), on_second = MakeEngineOn(*second, 64 * kMiB);
  std::vector<std::unique_ptr<Flight>> flights;
  std::vector<at::Tensor> expected;
  for (const Profile& profile : profiles_) {
    const ForwardCall call = MakeCall(profile);
    expected.push_back(Expected(call));
    for (Engine* const engine : {on_first.get(), on_second.get()}) flights.push_back(Send(*engine, call));
  }
  for (size_t i = 0; i < flights.size(); ++i) {
    ASSERT_THAT(flights[i]->Wait(), IsOk());
    EXPECT_TRUE(at::equal(flights[i]->result->output, expected[i / 2])) << profiles_[i / 2].name;
  }
  const std::vector<cuda_double::Launch> launches = cuda_double::Launches();
  const auto on = [&](int device) {
    return std::count_if(launches.begin(), launches.end(), [&](const cuda_double::Launch& launch) {
      return launch.device == device && launch.kernel == "aten::addmm";
    });
  };
  EXPECT_GT(on(0), 0);
  EXPECT_EQ(on(0), on(1));
}

// Has no memory for more than a granule while it is told so: a module here takes one, a pass more.
class RefusingDevice final : public ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;
  absl::Status Commit(Memory memory, std::byte* begin, int64_t bytes) override {
    if (refuses && !IsHost(memory) && bytes > granule_bytes(memory)) return absl::ResourceExhaustedError("refused");
    return ForwardingDevice::Commit(memory, begin, bytes);
  }

  std::atomic<bool> refuses = false;
};

TEST_F(CudaEngineTest, WhereMemoryForActivationsIsRefusedThePassEndsAndTheNextOneGoesOn) {
  RefusingDevice gpu(MakeGpu());
  const auto engine = MakeEngineOn(gpu);
  const ForwardCall call = MakeCall(ProfileNamed("disk"), 512, 512);
  gpu.refuses = true;
  EXPECT_THAT(Send(*engine, call)->Wait(),
              StatusIs(absl::StatusCode::kResourceExhausted, "no memory left for activations"));
  EXPECT_EQ(engine->Residency().device.activations_bytes, 0);
  gpu.refuses = false;
  EXPECT_TRUE(at::equal(Output(*engine, call), Expected(call)));
}

// What a test does with a device's memory for tensors.
class WatchedMemory final : public TensorMemory {
 public:
  WatchedMemory(std::shared_ptr<TensorMemory> memory, int64_t size_bytes)
      : memory_(std::move(memory)), size_bytes_(size_bytes) {}
  std::byte* Allocate(int64_t bytes) override { return bytes > size_bytes_ ? nullptr : memory_->Allocate(bytes); }
  void Free(std::byte* data) override { memory_->Free(data); }

 private:
  const std::shared_ptr<TensorMemory> memory_;
  const int64_t size_bytes_;
};

// Lets tensors of passes be no larger than it is told.
class SmallMemoryDevice final : public ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;
  void ComputeIn(std::shared_ptr<TensorMemory> memory) override {
    const int64_t bytes = largest_;
    if (memory != nullptr) memory = std::make_shared<WatchedMemory>(std::move(memory), bytes);
    ForwardingDevice::ComputeIn(std::move(memory));
  }
  void SetLargest(int64_t bytes) { largest_ = bytes; }

 private:
  std::atomic<int64_t> largest_ = std::numeric_limits<int64_t>::max();
};

TEST_F(CudaEngineTest, APassThatNeedsMoreThanWasReservedFailsAlone) {
  SmallMemoryDevice gpu(MakeGpu());
  const auto engine = MakeEngineOn(gpu, 64 * kMiB);
  const ForwardCall call = MakeCall(ProfileNamed("disk"));
  EXPECT_TRUE(at::equal(Output(*engine, call), Expected(call)));
  gpu.SetLargest(4096);
  EXPECT_THAT(Send(*engine, call)->Wait(),
              StatusIs(absl::StatusCode::kResourceExhausted, "no memory left for activations"));
  gpu.SetLargest(std::numeric_limits<int64_t>::max());
  EXPECT_EQ(engine->Residency().device.activations_bytes, 0);
  EXPECT_TRUE(at::equal(Output(*engine, call), Expected(call)));
}

// What the device has given is what the ledger has booked, while riders come and go and when they have gone.
TEST_F(CudaEngineTest, TheLedgerHasWhatTheDeviceHasGivenToTheByte) {
  constexpr int64_t kModules = 30 * kMiB, kBudget = 96 * kMiB;
  cuda_double::Options options;
  options.device_bytes = int64_t{1} << 30;
  options.module_bytes = kModules;
  cuda_double::Begin(options);
  {
    const std::unique_ptr<Device> gpu = MakeGpu();
    const auto given = [&] {
      const MemoryStatus status = *gpu->MemoryStatusOf(gpu->memory());
      return status.total_bytes - status.available_bytes;
    };
    const auto engine = MakeEngineOn(*gpu, kBudget);
    EXPECT_EQ(engine->Residency().device.runtime_bytes, kModules);
    EXPECT_EQ(engine->Residency().device.total_bytes(), kModules);
    EXPECT_EQ(given(), kModules);
    int64_t most = 0;
    std::vector<std::unique_ptr<Flight>> flights;
    for (const Profile& profile : profiles_) {
      flights.push_back(Send(*engine, MakeCall(profile), [&](const ForwardProgress&) {
        most = std::max(most, given());
        EXPECT_LE(given(), kBudget);
      }));
    }
    for (const auto& flight : flights) EXPECT_THAT(flight->Wait(), IsOk());
    EXPECT_GT(most, kModules);
    while (cuda_double::Machine().RunSome()) {
    }
    const ResidencySnapshot after = engine->Residency();
    EXPECT_EQ(after.device.activations_bytes, 0);
    EXPECT_EQ(after.device.total_bytes(), given());
    EXPECT_EQ(after.other_processes_bytes, 0);
    EXPECT_LE(after.device.peak_bytes, kBudget);
  }
  End();
}

TEST_F(CudaEngineTest, ABudgetThatIsTooSmallForTheRuntimeIsAnErrorThatTellsBoth) {
  cuda_double::Options options;
  options.device_bytes = int64_t{1} << 30;
  options.module_bytes = 300 * kMiB;
  cuda_double::Begin(options);
  const std::unique_ptr<Device> gpu = MakeGpu();
  LocalEngineOptions budgets;
  budgets.host_budget_bytes = 128 * kMiB;
  for (const int64_t budget : {kMiB, 299 * kMiB}) {
    budgets.device_budget_bytes = budget;
    EXPECT_THAT(
        LocalEngine::Make(budgets, gpu.get(), &clock_).status(),
        StatusIs(absl::StatusCode::kResourceExhausted, absl::StrCat("the budget of cuda:0 is ", budget, " bytes; ")));
  }
  budgets.device_budget_bytes = 300 * kMiB;
  EXPECT_THAT(LocalEngine::Make(budgets, gpu.get(), &clock_), IsOk());
}

TEST_F(CudaEngineTest, AnErrorOfOneCallEndsAtMostThePassesThatItMeets) {
  // (Waiting fails where a device is lost, and not else.)
  constexpr const char* kFunctions[] = {"cudaEventCreateWithFlags",
                                        "cudaEventRecord",
                                        "cudaStreamWaitEvent",
                                        "cudaMemcpyAsync",
                                        "cudaLaunchKernel",
                                        "cuMemCreate",
                                        "cuMemMap",
                                        "cuMemSetAccess",
                                        "cudaHostRegister",
                                        "cudaPointerGetAttributes"};
  constexpr int64_t kFirsts[] = {3, 40};
  int failed = 0;
  for (const char* function : kFunctions) {
    for (const int64_t n : kFirsts) {
      SCOPED_TRACE(absl::StrCat(function, " ", n));
      Begin(static_cast<uint32_t>(n));
      {
        const std::unique_ptr<Device> gpu = MakeGpu();
        const auto engine = MakeEngineOn(*gpu, 64 * kMiB);
        const bool of_memory = absl::StrContains(function, "Create");
        const int64_t failing = cuda_double::Calls(function) + n;
        cuda_double::FailCall(function, n, of_memory ? cudaErrorMemoryAllocation : cudaErrorInvalidValue);
        std::vector<std::unique_ptr<Flight>> flights;
        for (const Profile& profile : profiles_) flights.push_back(Send(*engine, MakeCall(profile)));
        for (size_t i = 0; i < flights.size(); ++i) {
          if (!flights[i]->Wait().ok()) {
            ++failed;
            EXPECT_FALSE(absl::IsUnavailable(flights[i]->result.status()));
          } else {
            EXPECT_TRUE(at::equal(flights[i]->result->output, Expected(MakeCall(profiles_[i]))));
          }
        }
        const ForwardCall call = MakeCall(ProfileNamed("disk"));
        if (cuda_double::Calls(function) >= failing) {
          EXPECT_TRUE(at::equal(Output(*engine, call), Expected(call)));
        }
        EXPECT_EQ(engine->Residency().device.activations_bytes, 0);
      }
      End();
    }
  }
  EXPECT_GT(failed, 0);
}

// In a process of its own, which such a loss ends.
class CudaEngineDeathTest : public CudaEngineTest {
 protected:
  // Exits with 0 where calls end as they must when the n-th operation loses the device.
  [[noreturn]] void LoseAt(int64_t n) {
    const std::unique_ptr<Device> gpu = MakeGpu();
    absl::Notification told;
    LocalEngineOptions options;
    options.device_budget_bytes = options.host_budget_bytes = 128 * kMiB;
    options.threads = 1;
    options.on_device_lost = [&](const absl::Status& why) {
      if (absl::IsUnavailable(why)) told.Notify();  // Once, or this ends the process.
    };
    auto engine = LocalEngine::Make(options, gpu.get(), &clock_);
    bool right = engine.ok() && (*engine)->LoadModel({"tiny", folder_ / "model"}).ok();
    cuda_double::FailOperation(n, cudaErrorIllegalAddress);
    std::vector<std::unique_ptr<Flight>> flights;
    for (const Profile& profile : profiles_) flights.push_back(Send(**engine, MakeCall(profile)));
    for (const auto& flight : flights) right &= IsLoss(flight->Wait().status());
    told.WaitForNotification();
    right &= IsLoss(Send(**engine, MakeCall(profiles_[0]))->Wait().status());
    engine->reset();  // It waits for nothing that will not come.
    std::_Exit(right ? 0 : 1);
  }

 private:
  static bool IsLoss(const absl::Status& status) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return absl::IsUnavailable(status) && absl::StrContains(status.message(), "cuda:0 is lost");
  }
};

TEST_F(CudaEngineDeathTest, ADeviceThatIsLostInMidPassEndsEveryCallWithUnavailable) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const int64_t n : {1, 50, 400, 1500}) {
    EXPECT_EXIT(LoseAt(n), ::testing::ExitedWithCode(0), "cuda:0 is lost") << n;
  }
}

}  // namespace
}  // namespace ditserve
