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
#include <map>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/base/executor.h"
#include "core/memory/arena.h"
#include "core/memory/ledger.h"
#include "core/memory/tensor_region.h"
#include "server/engine/device_report.h"
#include "server/engine/operation_queue.h"
#include "server/engine/tensor_link.h"
#include "tests/cuda_double/cublas.h"
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

TEST_F(CudaEngineTest, InFloat8EachLinearIsOneKernelAndOneProduct) {
  const std::unique_ptr<Device> gpu = MakeGpu();
  const auto engine = MakeEngineOn(*gpu);
  const size_t warming_up = cuda_double::Launches().size();
  Output(*engine, MakeCall(ProfileNamed("fp8-compute")));
  std::vector<cuda_double::Launch> launches = cuda_double::Launches();
  launches.erase(launches.begin(), launches.begin() + static_cast<std::ptrdiff_t>(warming_up));
  const auto count = [&](const std::string& part) {
    return std::count_if(launches.begin(), launches.end(),
                         [&](const cuda_double::Launch& launch) { return absl::StrContains(launch.kernel, part); });
  };
  const int linears = 14 * 3 + 2;  // Of three blocks.
  EXPECT_EQ(count("Float8OperandsKernel"), linears);
  EXPECT_EQ(count("aten::_scaled_mm"), linears);
  EXPECT_EQ(count("aten::addmm"), 0);
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

// What decides is brought to the host as outputs are; what is kept lies in the region that was booked.
TEST_F(CudaEngineTest, ALoopWithAStepCacheReusesWhatTheCpuReuses) {
  const std::unique_ptr<Device> gpu = MakeGpu();
  const auto engine = MakeEngineOn(*gpu);
  for (const StepCacheRule rule : {StepCacheRule::kFirstBlock, StepCacheRule::kTeaCache}) {
    for (const double threshold : {1e-9, 0.5, 1e9}) {
      ForwardCall call = GuidedLoop(5, ProfileNamed("disk"));
      call.denoising->step_cache = StepCacheOptions{rule, threshold, {0, 0, 0, 1, 0}};
      const auto flight = Send(*engine, call);
      ASSERT_THAT(flight->Wait(), IsOk());
      EXPECT_TRUE(at::equal(flight->result->output, Expected(call))) << threshold;
      const size_t reused = flight->result->reused_steps.size();
      EXPECT_TRUE(threshold == 0.5 || reused == (threshold > 1 ? 4u : 0u)) << reused;
    }
  }
}

TEST_F(CudaEngineTest, BudgetsThatChangeNeverChangeAResult) {
  for (uint32_t seed = 1; seed <= 12; ++seed) {
    Begin(seed);
    Ride(seed, 4, [&](Engine& engine, int rider) {
      const int64_t bytes = (64 + 8 * (static_cast<int64_t>(seed + static_cast<uint32_t>(rider)) % 5)) * kMiB;
      EXPECT_THAT(engine.SetBudget(Memory::kDevice, bytes), IsOk());
    });
    End();
  }
}

TEST_F(CudaEngineTest, CancellingAtAnyModuleLeavesNothingBehind) {
  const std::unique_ptr<Device> gpu = MakeGpu();
  const auto engine = MakeEngineOn(*gpu, 88 * kMiB);
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
  const auto engine = MakeEngineOn(*gpu, 88 * kMiB);
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

constexpr char kProduct[] = "aten::addmm";  // At most one a module, and in most.

// Does not come to marks until it is let.
class StandingDevice final : public ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;

  void LetGo() { goes_.Notify(); }
  absl::StatusOr<EventPtr> MarkOperations() override {
    absl::StatusOr<EventPtr> event = ForwardingDevice::MarkOperations();
    if (event.ok()) event = std::make_shared<LateMark>(*std::move(event), &goes_);
    return event;
  }

 private:
  class LateMark final : public Event {
   public:
    LateMark(EventPtr event, absl::Notification* goes) : event_(std::move(event)), goes_(*goes) {}
    bool Done() override { return goes_.HasBeenNotified() && event_->Done(); }
    absl::Status Wait() override {
      goes_.WaitForNotification();
      return event_->Wait();
    }
    absl::StatusOr<absl::Duration> TimeSince(const Event& earlier) override {
      return event_->TimeSince(*static_cast<const LateMark&>(earlier).event_);
    }

   private:
    const EventPtr event_;
    absl::Notification& goes_;
  };

  absl::Notification goes_;
};

TEST_F(CudaEngineTest, WhileADeviceStandsOnlySoManyModulesAreIssuedAndOfACancelledPassOneMore) {
  constexpr int kMost = OperationQueue::kMostModulesBehind;
  const auto products = [] {
    const std::vector<cuda_double::Launch> launches = cuda_double::Launches();
    return std::count_if(launches.begin(), launches.end(),
                         [](const cuda_double::Launch& launch) { return launch.kernel == kProduct; });
  };
  const ForwardCall call = MakeCall(ProfileNamed("disk"));
  for (const bool cancels : {false, true}) {
    StandingDevice gpu(MakeGpu());
    const auto engine = MakeEngineOn(gpu, 88 * kMiB);
    std::atomic<int> most = 0;
    absl::Notification stands;
    const auto flight = Send(*engine, call, [&](const ForwardProgress& progress) {
      most = progress.modules_done;
      if (most == kMost) stands.Notify();
    });
    stands.WaitForNotification();
    const at::Tensor expected = Expected(call);  // Time enough to issue whatever is not held back.
    EXPECT_EQ(most, kMost);
    const int64_t issued = products();
    if (cancels) flight->handle->Cancel(absl::CancelledError("enough"));
    gpu.LetGo();
    if (cancels) {
      EXPECT_THAT(flight->Wait(), StatusIs(absl::StatusCode::kCancelled, "enough"));
      EXPECT_LE(products(), issued + 1);
    } else {
      ASSERT_THAT(flight->Wait(), IsOk());
      EXPECT_TRUE(at::equal(flight->result->output, expected));
    }
  }
}

TEST_F(CudaEngineTest, SlotsForCastsAreOfTheDevicesBudgetWhichIsNeverLess) {
  const std::unique_ptr<Device> gpu = MakeGpu();
  const int64_t slots = gpu->staging_bytes();
  {
    const auto engine = MakeEngineOn(*gpu);
    EXPECT_EQ(engine->Residency().memory(Memory::kDevice).usage.staging_bytes, slots);
    const int64_t taken = engine->Residency().memory(Memory::kDevice).usage.total_bytes();
    EXPECT_GT(taken, slots) << "workspaces too";
    EXPECT_THAT(engine->SetBudget(Memory::kDevice, taken - 1),
                StatusIs(absl::StatusCode::kFailedPrecondition, "always needs"));
    EXPECT_THAT(engine->SetBudget(Memory::kDevice, taken), IsOk());
  }
  LocalEngineOptions options;
  options.host_budget_bytes = 64 * kMiB;
  EXPECT_THAT(LocalEngine::Make(options, {{gpu.get(), slots - 1}}, &clock_),
              StatusIs(absl::StatusCode::kResourceExhausted, "slots for casts on cuda:0 take"));
}

TEST_F(CudaEngineTest, AnEngineThatDoesNotStartEndsItsOwnTestAlone) {
  const std::unique_ptr<Device> gpu = MakeGpu();
  EXPECT_THROW(MakeEngineOn(*gpu, gpu->staging_bytes() - 1), absl::BadStatusOrAccess);
}

// In the double's time, in which the host takes none.
TEST_F(CudaEngineTest, AccountsAndPlansAreOfTheDevicesTime) {
  const absl::Duration kTime = absl::Milliseconds(2);
  const std::unique_ptr<Device> gpu = MakeGpu();
  const auto engine = MakeEngineOn(*gpu, 88 * kMiB);
  const ForwardCall call = MakeCall(ProfileNamed("disk"));
  const auto products = [kTime](const std::string& place) { return place == kProduct ? kTime : absl::ZeroDuration(); };
  cuda_double::Machine().SetDurations(products);
  const auto alone = Send(*engine, call);
  ASSERT_THAT(alone->Wait(), IsOk());
  const absl::Duration computing = alone->result->account.compute;
  EXPECT_EQ(computing, cuda_double::Machine().EndsAt());
  EXPECT_EQ(computing, 44 * kTime) << "14 in each of 3 blocks but for 4 of the last, and 6";
  EXPECT_EQ(alone->result->account.stall, absl::ZeroDuration()) << "copies take no time";
  const absl::StatusOr<ForwardPlan> plan = engine->Plan({call.model, ShapeOf(call.inputs), call.profile, 1, {}});
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->first.computing, computing);

  cuda_double::Machine().SetDurations(
      [&](const std::string& place) { return place == "cudaMemcpyAsync" ? absl::Milliseconds(7) : products(place); });
  const absl::Duration begun = cuda_double::Machine().EndsAt();
  std::vector<std::unique_ptr<Flight>> flights;
  for (int i = 0; i < 3; ++i) flights.push_back(Send(*engine, call));
  absl::Duration stalls;
  for (const auto& flight : flights) {
    ASSERT_THAT(flight->Wait(), IsOk());
    EXPECT_EQ(flight->result->account.compute, computing) << "what others compute is theirs";
    stalls += flight->result->account.stall;
  }
  EXPECT_GT(stalls, absl::ZeroDuration());
  EXPECT_EQ(3 * computing + stalls, cuda_double::Machine().EndsAt() - begun) << "nothing is counted twice or never";
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

TEST_F(CudaEngineTest, ADeviceIsDescribedWithWhatEachProfileTakesAndNothingOfItIsKept) {
  const std::unique_ptr<Device> gpu = MakeGpu(1);
  DeviceReportOptions options;
  options.profiles = profiles_;
  options.budgets = {64000 * kMiB, 64000 * kMiB};
  options.taken = {20 * kMiB, gpu->staging_bytes()};
  options.cuda.emplace();
  std::string why;
  ASSERT_TRUE(DitserveDescribeCuda(&*options.cuda, &why)) << why;
  const absl::StatusOr<std::string> report = ReportDevice(*gpu, options, clock_);
  ASSERT_THAT(report, IsOk());
  EXPECT_THAT(*report, HasSubstr("cuda:1       Double 1, compute capability 9.0, 132 multiprocessors, 1.0 GiB\n"));
  EXPECT_THAT(*report, HasSubstr("544 TFLOP/s, published, not measured here"));
  EXPECT_THAT(*report, ContainsRegex("\nresident +[0-9.]+ MiB +[0-9.]+ GiB +[0-9.]+ MiB +0 B +0 B +0.13 s\n"));
  EXPECT_THAT(*report, ContainsRegex("\nfp8-compute [^\n]*B +at most [0-9.]+ s"));
}

TEST_F(CudaEngineTest, EnginesOfTwoDevicesComputeAtOnce) {
  const std::unique_ptr<Device> first = MakeGpu(0), second = MakeGpu(1);
  const auto on_first = MakeEngineOn(*first, 88 * kMiB), on_second = MakeEngineOn(*second, 88 * kMiB);
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
  EXPECT_EQ(engine->Residency().memory(Memory::kDevice).usage.activations_bytes, 0);
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
  const auto engine = MakeEngineOn(gpu, 88 * kMiB);
  const ForwardCall call = MakeCall(ProfileNamed("disk"));
  EXPECT_TRUE(at::equal(Output(*engine, call), Expected(call)));
  gpu.SetLargest(4096);
  EXPECT_THAT(Send(*engine, call)->Wait(),
              StatusIs(absl::StatusCode::kResourceExhausted, "no memory left for activations"));
  gpu.SetLargest(std::numeric_limits<int64_t>::max());
  EXPECT_EQ(engine->Residency().memory(Memory::kDevice).usage.activations_bytes, 0);
  EXPECT_TRUE(at::equal(Output(*engine, call), Expected(call)));
}

// What the device has given is what the ledger has booked, while riders come and go and when they have gone.
TEST_F(CudaEngineTest, TheLedgerHasWhatTheDeviceHasGivenToTheByte) {
  constexpr int64_t kContext = 17 * kMiB, kModules = 30 * kMiB, kBudget = 136 * kMiB;
  cuda_double::Options options;
  options.device_bytes = int64_t{1} << 30;
  options.context_bytes = kContext;
  options.module_bytes = kModules;
  cuda_double::Begin(options);
  {
    const std::unique_ptr<Device> gpu = MakeGpu();
    const auto given = [&] {
      const MemoryStatus status = *gpu->MemoryStatusOf(gpu->memory());
      return status.total_bytes - status.available_bytes;
    };
    const auto engine = MakeEngineOn(*gpu, kBudget);
    const int64_t runtime = kContext + kModules + cuda_double::kCublasWorkspaceBytes;
    const int64_t for_good = runtime + gpu->staging_bytes();
    const MemoryUsage begun = engine->Residency().memory(Memory::kDevice).usage;
    EXPECT_EQ(begun.runtime_bytes, runtime);
    EXPECT_EQ(begun.total_bytes(), for_good);
    EXPECT_EQ(given(), for_good);
    int64_t most = 0;
    std::vector<std::unique_ptr<Flight>> flights;
    for (const Profile& profile : profiles_) {
      flights.push_back(Send(*engine, MakeCall(profile), [&](const ForwardProgress&) {
        most = std::max(most, given());
        EXPECT_LE(given(), kBudget);
      }));
    }
    for (const auto& flight : flights) EXPECT_THAT(flight->Wait(), IsOk());
    EXPECT_GT(most, for_good);
    while (cuda_double::Machine().RunSome()) {
    }
    const DeviceInfo after = engine->Residency().devices[0];
    EXPECT_EQ(after.memory.usage.activations_bytes, 0);
    EXPECT_EQ(after.memory.usage.total_bytes(), given());
    EXPECT_EQ(after.other_processes_bytes, 0);
    EXPECT_LE(after.memory.usage.peak_bytes, kBudget);
  }
  End();
}

// LibTorch keeps workspaces by the stream and the handle, which the next engine has too.
TEST_F(CudaEngineTest, AnotherEngineInTheProcessTakesWorkspacesOfItsOwn) {
  cuda_double::Begin({});
  {
    const std::unique_ptr<Device> gpu = MakeGpu();
    const ForwardCall call = MakeCall(ProfileNamed("disk"));
    for (int i = 0; i < 2; ++i) {
      const auto engine = MakeEngineOn(*gpu);
      EXPECT_EQ(engine->Residency().memory(Memory::kDevice).usage.runtime_bytes, cuda_double::kCublasWorkspaceBytes);
      EXPECT_TRUE(at::equal(Output(*engine, call), Expected(call)));
    }
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
  const int64_t slots = gpu->staging_bytes();
  for (const int64_t budget : {slots + kMiB, slots + 299 * kMiB}) {
    EXPECT_THAT(
        LocalEngine::Make(budgets, {{gpu.get(), budget}}, &clock_).status(),
        StatusIs(absl::StatusCode::kResourceExhausted, absl::StrCat("the budget of cuda:0 is ", budget, " bytes; ")));
  }
  EXPECT_THAT(LocalEngine::Make(budgets, {{gpu.get(), slots + 300 * kMiB}}, &clock_), IsOk());
}

TEST_F(CudaEngineTest, WhereHostMemoryCantBeRegisteredEveryProfileIsRightAndItIsTold) {
  cuda_double::FailCall("cudaHostRegister", cuda_double::kEveryCall, cudaErrorNotSupported);
  const std::unique_ptr<Device> gpu = MakeGpu();
  const auto engine = MakeEngineOn(*gpu);
  for (const Profile& profile : profiles_) {
    const ForwardCall call = MakeCall(profile);
    EXPECT_TRUE(at::equal(Output(*engine, call), Expected(call))) << profile.name;
  }
  EXPECT_EQ(engine->Residency().host_unpinned_bytes, engine->Residency().host.usage.total_bytes());
}

// Of a GPU that others share the ledger has what the driver then refuses.
TEST_F(CudaEngineTest, WhereOthersHaveTakenTheMemoryPassesGoOnInWhatIsLeft) {
  const std::unique_ptr<Device> gpu = MakeGpu();
  const auto engine = MakeEngineOn(*gpu);
  const ForwardCall call = MakeCall(ProfileNamed("resident"));
  const at::Tensor expected = Expected(call);
  EXPECT_TRUE(at::equal(Output(*engine, call), expected));
  const int64_t weights = engine->Residency().devices[0].memory.usage.weights_bytes;
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
  options.host_budget_bytes = 400 * kMiB;
  options.threads = 1;
  options.follow_pressure = true;
  MovedClock clock;
  const auto engine = *LocalEngine::Make(options, {{gpu.get(), 400 * kMiB}}, &clock);
  EXPECT_THAT(engine->LoadModel({"tiny", folder_ / "model"}), IsOk());
  const ForwardCall call = MakeCall(ProfileNamed("resident"));
  const at::Tensor expected = Expected(call);
  EXPECT_TRUE(at::equal(Output(*engine, call), expected));
  clock.PassAtEachLook(absl::Milliseconds(100));
  const auto await = [&](const std::function<bool(const ResidencySnapshot&)>& is_so) {
    while (!is_so(engine->Residency())) std::this_thread::yield();
  };
  const int64_t held = engine->Residency().devices[0].memory.usage.total_bytes();
  cuda_double::SetOthers(0, 512 * kMiB);  // With the reserve, all that there is.
  await([&](const ResidencySnapshot& now) { return now.devices[0].memory.usage.budget_bytes < held; });
  await([&](const ResidencySnapshot& now) { return now.devices[0].memory.usage.total_bytes() < held; });
  EXPECT_EQ(engine->Residency().devices[0].memory.usage.wanted_bytes, 400 * kMiB);
  // (What the driver and what the ledger says are not of one moment while copies go.)
  await([&](const ResidencySnapshot& now) { return now.devices[0].other_processes_bytes >= 512 * kMiB; });
  cuda_double::SetOthers(0, 0);
  await([&](const ResidencySnapshot& now) { return now.devices[0].memory.usage.budget_bytes == 400 * kMiB; });
  clock.PassAtEachLook(absl::Milliseconds(1));  // At each look more, a pass would seem to hang.
  EXPECT_TRUE(at::equal(Output(*engine, call), expected));
  await([&](const ResidencySnapshot& now) { return now.devices[0].memory.usage.weights_bytes > 0; });
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
        const auto engine = MakeEngineOn(*gpu, 88 * kMiB);
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
        EXPECT_EQ(engine->Residency().devices[0].memory.usage.activations_bytes, 0);
      }
      End();
    }
  }
  EXPECT_GT(failed, 0);
}

// In a process of its own, which such a loss ends.
class CudaEngineDeathTest : public CudaEngineTest {
 protected:
  // Exits with 0 where calls end as they must when the n-th operation loses a device, of one or of two.
  [[noreturn]] void LoseAt(int64_t n, bool of_two) {
    const std::unique_ptr<Device> gpu = MakeGpu(), second = MakeGpu(1, DeviceMemory(1));
    std::vector<BudgetedDevice> devices = {{gpu.get(), 152 * kMiB}};
    if (of_two) devices.push_back({second.get(), 152 * kMiB});
    absl::Notification told;
    LocalEngineOptions options;
    options.host_budget_bytes = 128 * kMiB;
    options.threads = 1;
    options.on_device_lost = [&](const absl::Status& why) {
      if (absl::IsUnavailable(why)) told.Notify();  // Once, or this ends the process.
    };
    auto engine = LocalEngine::Make(options, devices, &clock_);
    bool right = engine.ok() && (*engine)->LoadModel({"tiny", folder_ / "model"}).ok();
    cuda_double::FailOperation(n, cudaErrorIllegalAddress);
    std::vector<std::unique_ptr<Flight>> flights;
    for (const Profile& profile : profiles_) flights.push_back(Send(**engine, MakeCall(profile)));
    // (Of two, one can have computed a call before the other was lost.)
    for (const auto& flight : flights) right &= IsLoss(flight->Wait().status()) || (of_two && flight->result.ok());
    told.WaitForNotification();
    right &= IsLoss(Send(**engine, MakeCall(profiles_[0]))->Wait().status());
    engine->reset();  // It waits for nothing that will not come.
    std::_Exit(right ? 0 : 1);
  }

 private:
  static bool IsLoss(const absl::Status& status) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return absl::IsUnavailable(status) && absl::StrContains(status.message(), " is lost");
  }
};

TEST_F(CudaEngineDeathTest, ADeviceThatIsLostInMidPassEndsEveryCallWithUnavailable) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const int64_t n : {1, 50, 400, 1500}) {
    EXPECT_EXIT(LoseAt(n, false), ::testing::ExitedWithCode(0), "cuda:0 is lost") << n;
    EXPECT_EXIT(LoseAt(n, true), ::testing::ExitedWithCode(0), "cuda:[01] is lost") << n;
  }
}

}  // namespace
}  // namespace ditserve
