// The real model in the real engine on the CUDA device: LibTorch's CPU kernels, late, on the double's streams.
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/base/executor.h"
#include "core/memory/arena.h"
#include "core/memory/ledger.h"
#include "server/engine/device_report.h"
#include "server/engine/tensor_link.h"
#include "tests/cuda_double/engine_on_cuda.h"
#include "tests/testing/fake_clock.h"

namespace ditserve {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

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
  const int modules = engine->Models()[0].model->modules_used();
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
  executor->Post([&] {
    EXPECT_THAT(gpu->BeginOperations(), IsOk());
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

TEST_F(CudaEngineTest, ADeviceIsDescribedWithWhatEachProfileTakesAndNothingOfItIsKept) {
  const std::unique_ptr<Device> gpu = MakeGpu(1);
  DeviceReportOptions options;
  options.profiles = profiles_;
  options.device_budget_bytes = options.host_budget_bytes = 64000 * kMiB;
  options.cuda.emplace();
  std::string why;
  ASSERT_TRUE(DitserveDescribeCuda(&*options.cuda, &why)) << why;
  const absl::StatusOr<std::string> report = ReportDevice(*gpu, options, clock_);
  ASSERT_THAT(report, IsOk());
  EXPECT_THAT(*report, HasSubstr("cuda:1       Double 1, compute capability 9.0, 132 multiprocessors, 1.0 GiB\n"));
  EXPECT_THAT(*report, HasSubstr("544 TFLOP/s, published, not measured here"));
  EXPECT_THAT(*report, ContainsRegex("\nresident +[0-9.]+ MiB +[0-9.]+ GiB +[0-9.]+ MiB +0 B +0 B +0.13 s\n"));
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

TEST_F(CudaEngineTest, WhereMemoryForActivationsIsRefusedThePassEndsAndTheNextOneGoesOn) {
  const std::unique_ptr<Device> gpu = MakeGpu();
  const auto engine = MakeEngineOn(*gpu);
  const ForwardCall call = MakeCall(ProfileNamed("disk"));
  for (int i = 0; i < 2; ++i) cuda_double::FailCall("cudaMalloc", 1, cudaErrorMemoryAllocation);  // It asks twice.
  EXPECT_THAT(Send(*engine, call)->Wait(),
              StatusIs(absl::StatusCode::kResourceExhausted, "no memory left for activations"));
  EXPECT_TRUE(at::equal(Output(*engine, call), Expected(call)));
}

TEST_F(CudaEngineTest, WhereHostMemoryCantBeRegisteredEveryProfileIsRightAndItIsTold) {
  cuda_double::FailCall("cudaHostRegister", cuda_double::kEveryCall, cudaErrorNotSupported);
  const std::unique_ptr<Device> gpu = MakeGpu();
  const auto engine = MakeEngineOn(*gpu);
  for (const Profile& profile : profiles_) {
    const ForwardCall call = MakeCall(profile);
    EXPECT_TRUE(at::equal(Output(*engine, call), Expected(call))) << profile.name;
  }
  EXPECT_EQ(engine->Residency().host_unpinned_bytes, engine->Residency().host.total_bytes());
}

// Of a GPU that others share the ledger has what the driver then refuses.
TEST_F(CudaEngineTest, WhereOthersHaveTakenTheMemoryPassesGoOnInWhatIsLeft) {
  const std::unique_ptr<Device> gpu = MakeGpu();
  const auto engine = MakeEngineOn(*gpu);
  const ForwardCall call = MakeCall(ProfileNamed("resident"));
  const at::Tensor expected = Expected(call);
  EXPECT_TRUE(at::equal(Output(*engine, call), expected));
  const int64_t weights = engine->Residency().device.weights_bytes;
  cuda_double::SetOthers(0, (int64_t{1} << 30) - weights / 2);
  for (const Profile& profile : profiles_) {
    const ForwardCall other = MakeCall(profile);
    EXPECT_TRUE(at::equal(Output(*engine, other), Expected(other))) << profile.name;
  }
  cuda_double::SetOthers(0, 0);
  EXPECT_TRUE(at::equal(Output(*engine, call), expected));
}

TEST_F(CudaEngineTest, TheBudgetGivesWayToOthersAndComesBack) {
  const std::unique_ptr<Device> gpu = MakeGpu();
  LocalEngineOptions options;
  options.device_budget_bytes = options.host_budget_bytes = 400 * kMiB;
  options.threads = 1;
  options.follow_pressure = true;
  MovedClock clock;
  const auto engine = *LocalEngine::Make(options, gpu.get(), &clock);
  EXPECT_THAT(engine->LoadModel({"tiny", folder_ / "model"}), IsOk());
  const ForwardCall call = MakeCall(ProfileNamed("resident"));
  const at::Tensor expected = Expected(call);
  EXPECT_TRUE(at::equal(Output(*engine, call), expected));
  clock.PassAtEachLook(absl::Milliseconds(100));
  const auto await = [&](const std::function<bool(const ResidencySnapshot&)>& is_so) {
    while (!is_so(engine->Residency())) std::this_thread::yield();
  };
  const int64_t held = engine->Residency().device.total_bytes();
  cuda_double::SetOthers(0, 512 * kMiB);  // With the reserve, all that there is.
  await([&](const ResidencySnapshot& now) { return now.device.budget_bytes < held; });
  await([&](const ResidencySnapshot& now) { return now.device.total_bytes() < held; });
  EXPECT_EQ(engine->Residency().device.wanted_bytes, 400 * kMiB);
  EXPECT_GE(engine->Residency().other_processes_bytes, 512 * kMiB);
  cuda_double::SetOthers(0, 0);
  await([&](const ResidencySnapshot& now) { return now.device.budget_bytes == 400 * kMiB; });
  EXPECT_TRUE(at::equal(Output(*engine, call), expected));
  await([&](const ResidencySnapshot& now) { return now.device.weights_bytes > 0; });
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
                                        "cudaMalloc",
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
        const bool of_memory = absl::StrContains(function, "Create") || absl::StrContains(function, "Malloc");
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

// In a process of its own, as LibTorch's allocator keeps memory that is gone with the device.
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
