// The engine with everything behind it: checkpoints, residency, the model, on the CPU.
#include "server/engine/local_engine.h"

#include <ATen/ops/equal.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/accumulate.h>

#include <atomic>
#include <fstream>
#include <limits>
#include <thread>
#include <vector>

#include "core/storage/checkpoint.h"
#include "tests/server/engine/local_engine_fixture.h"

namespace ditserve {
namespace {

TEST_F(LocalEngineTest, ProfilesOfEqualPrecisionGiveTheSameBytes) {
  const auto engine = MakeEngine();
  const at::Tensor expected = Output(*engine, MakeCall(ProfileNamed("resident")));
  for (const char* name : {"host-offload", "dynamic", "disk"}) {
    EXPECT_TRUE(at::equal(Output(*engine, MakeCall(ProfileNamed(name))), expected)) << name;
  }
  const at::Tensor rounded = Output(*engine, MakeCall(ProfileNamed("fp8-host")));
  EXPECT_FALSE(at::equal(rounded, expected));
  EXPECT_TRUE(at::equal(Output(*engine, MakeCall(ProfileNamed("disk-fp8-device"))), rounded));
}

TEST_F(LocalEngineTest, WhatIsMultipliedInFloat8DoesNotDependOnWhereWeightsRest) {
  const auto engine = MakeEngine();
  Profile profile = ProfileNamed("fp8-compute");
  const at::Tensor expected = Output(*engine, MakeCall(profile));
  for (const char* rounded : {"resident", "fp8-host"}) {
    EXPECT_FALSE(at::equal(Output(*engine, MakeCall(ProfileNamed(rounded))), expected)) << rounded;
  }
  constexpr Station kDisk = {Tier::kDisk, DType::kFloat8E4M3}, kHost = {Tier::kHost, DType::kBFloat16},
                    kDevice = {Tier::kDevice, DType::kFloat8E4M3};
  for (const auto& [rest, preparing] : {std::pair(kDisk, kDisk), std::pair(kDisk, kDevice), std::pair(kHost, kHost),
                                        std::pair(kHost, kDevice), std::pair(kDevice, kDevice)}) {
    profile.offload = profile.onload = rest;
    profile.preparing = preparing;
    EXPECT_TRUE(at::equal(Output(*engine, MakeCall(profile)), expected))
        << static_cast<int>(rest.tier) << " " << static_cast<int>(preparing.tier);
  }
  EXPECT_TRUE(at::equal(Output(*MakeEngine(10 << 20), MakeCall(profile)), expected)) << "in little memory";
}

TEST_F(LocalEngineTest, WhatTheDeviceCantComputeIsRefusedAndNotOffered) {
  device_->cannot = absl::FailedPreconditionError("float8_e4m3fn takes more than it has");
  const auto engine = MakeEngine();
  Profile profile = ProfileNamed("fp8-compute");
  const auto refused = [](const std::string& what) {
    return StatusIs(absl::StatusCode::kFailedPrecondition, what + ": float8_e4m3fn takes more than it has");
  };
  EXPECT_THAT(Send(*engine, MakeCall(profile))->Wait(), refused("profile: 'fp8-compute'"));
  PlanCall plan;
  plan.model = "tiny";
  plan.profile = profile;
  plan.shape = {64, 64, {5}};
  plan.others = profiles_;
  EXPECT_THAT(engine->Plan(plan)->refusal, refused("profile: 'fp8-compute'"));
  plan.profile = ProfileNamed("disk");
  const absl::StatusOr<ForwardPlan> offered = engine->Plan(plan);
  ASSERT_THAT(offered, IsOk());
  for (const PlanOffer& offer : offered->offers) EXPECT_NE(offer.profile, "fp8-compute");
  profile.name.clear();
  EXPECT_THAT(Send(*engine, MakeCall(profile))->Wait(), refused("vram_config.computation_dtype"));
}

TEST_F(LocalEngineTest, BudgetsNeverChangeAResult) {
  const at::Tensor expected = Output(*MakeEngine(), MakeCall(ProfileNamed("dynamic")));
  const auto engine = MakeEngine(10 << 20);
  EXPECT_TRUE(at::equal(Output(*engine, MakeCall(ProfileNamed("dynamic"))), expected));
  EXPECT_LE(engine->Residency().devices[0].memory.usage.peak_bytes, 10 << 20);
}

TEST_F(LocalEngineTest, SixteenRequestsAtOnceGetWhatEachGetsAlone) {
  const auto engine = MakeEngine(48 << 20);
  std::vector<ForwardCall> calls;
  std::vector<at::Tensor> alone;
  for (int i = 0; i < 16; ++i) {
    static constexpr const char* kNames[] = {"resident", "fp8-compute", "fp8-host", "disk"};
    calls.push_back(MakeCall(ProfileNamed(kNames[i % 4]), 32 + 16 * (i % 3), 32 + 16 * (i % 5), 1 + i));
    alone.push_back(Output(*engine, calls.back()));
  }
  std::vector<std::unique_ptr<Flight>> flights;
  for (const ForwardCall& call : calls) flights.push_back(Send(*engine, call));
  for (size_t i = 0; i < flights.size(); ++i) {
    ASSERT_THAT(flights[i]->Wait(), IsOk());
    EXPECT_TRUE(at::equal(flights[i]->result->output, alone[i])) << "request " << i;
  }
  EXPECT_LE(engine->Residency().devices[0].memory.usage.peak_bytes, 48 << 20);
  EXPECT_EQ(engine->Residency().devices[0].memory.usage.activations_bytes, 0);
}

TEST_F(LocalEngineTest, RidersPoliciesCancellationsAndBudgetsNeverChangeAResult) {
  constexpr const char* kNames[] = {"resident", "host-offload", "dynamic", "disk"};  // Of equal precision.
  const at::Tensor expected = Output(*MakeEngine(), MakeCall(ProfileNamed("disk")));
  for (const int riders : {1, 3, 32}) {
    const auto engine = MakeEngine(48 << 20, /*max_riders=*/32);
    std::vector<std::unique_ptr<Flight>> kept, cancelled;
    for (int i = 0; i < riders; ++i) {
      ForwardCall call = MakeCall(ProfileNamed(kNames[i % 4]));
      call.join = static_cast<JoinPolicy>(i % 3);
      call.priority = i % 5 == 4 ? Priority::kBatch : Priority::kInteractive;
      kept.push_back(Send(*engine, call));
      cancelled.push_back(Send(*engine, call));
      cancelled.back()->handle->Cancel(absl::CancelledError("enough"));
      EXPECT_THAT(engine->SetBudget(Memory::kDevice, (16 + 8 * (i % 5)) << 20), IsOk());
    }
    for (const auto& flight : kept) {
      ASSERT_THAT(flight->Wait(), IsOk());
      EXPECT_TRUE(at::equal(flight->result->output, expected)) << riders << " riders";
    }
    for (const auto& flight : cancelled) flight->Wait().IgnoreError();
    EXPECT_EQ(engine->Residency().devices[0].memory.usage.activations_bytes, 0);
  }
}

TEST_F(LocalEngineTest, AFlippedWeightBitChangesTheResult) {
  const at::Tensor expected = Output(*MakeEngine(), MakeCall(ProfileNamed("disk")));
  {
    const auto checkpoint = Checkpoint::Open(folder_ / "model");
    const StoredTensor& tensor = *(*checkpoint)->Find("img_in.weight");
    std::fstream shard(folder_ / ("model/" + (*checkpoint)->shard_name(tensor.shard)),
                       std::ios::in | std::ios::out | std::ios::binary);
    shard.seekg(tensor.offset_bytes);
    const char byte = static_cast<char>(shard.get());
    shard.seekp(tensor.offset_bytes);
    shard.put(static_cast<char>(byte ^ 1));  // The lowest bit of the first weight.
  }
  EXPECT_FALSE(at::equal(Output(*MakeEngine(), MakeCall(ProfileNamed("disk"))), expected));
}

TEST_F(LocalEngineTest, ReportsProgressUpToTheLastModule) {
  const auto engine = MakeEngine();
  std::vector<int> done;
  const auto flight = Send(*engine, MakeCall(ProfileNamed("disk")), [&](const ForwardProgress& progress) {
    EXPECT_TRUE(progress.admitted);
    done.push_back(progress.modules_done);
  });
  ASSERT_THAT(flight->Wait(), IsOk());
  ASSERT_FALSE(done.empty());
  EXPECT_EQ(done.front(), 0);
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  const ModelInfo model = engine->Models()[0];
  EXPECT_EQ(done.back(), model.model->modules_used() - 1);
  int64_t used_bytes = model.stored_bytes;
  for (const ModuleIndex module : model.model->unused_modules()) {
    for (const ParameterSpec& parameter : model.model->modules()[static_cast<size_t>(module)].parameters) {
      used_bytes -= ElementCount(parameter.shape) * SizeOf(model.stored_dtypes.front());
    }
  }
  // Of what modulates the last block's text two chunks of six are read.
  const int64_t width = model.model->config().width();
  used_bytes -= 4 * width * (width + 1) * SizeOf(model.stored_dtypes.front());
  EXPECT_EQ(flight->result->account.disk_read_bytes, used_bytes);
  EXPECT_EQ(flight->result->account.riders, 1);
}

TEST_F(LocalEngineTest, CountsWhatIsNotFinite) {
  const auto engine = MakeEngine();
  ForwardCall call = MakeCall(ProfileNamed("disk"));
  call.inputs.latents.fill_(std::numeric_limits<float>::max());
  const auto flight = Send(*engine, std::move(call));
  ASSERT_THAT(flight->Wait(), IsOk());
  EXPECT_GT(flight->result->account.non_finite_elements, 0);
}

TEST_F(LocalEngineTest, CancellingAtAnyModuleReturnsEverything) {
  const auto engine = MakeEngine();
  const int modules = engine->Models()[0].model->modules_used();
  for (int at = 0; at < modules; ++at) {
    const bool late = at % 2 == 0;
    const absl::Status why = late ? absl::DeadlineExceededError("too late") : absl::CancelledError("enough");
    std::shared_ptr<ForwardHandle> handle;
    absl::Notification submitted;
    const auto flight = Send(*engine, MakeCall(ProfileNamed("disk")), [&](const ForwardProgress& progress) {
      submitted.WaitForNotification();
      if (progress.modules_done >= at) handle->Cancel(why);
    });
    handle = flight->handle;
    submitted.Notify();
    EXPECT_THAT(flight->Wait(), StatusIs(why.code(), why.message())) << at;
    EXPECT_EQ(engine->Residency().devices[0].memory.usage.activations_bytes, 0);
  }
}

TEST_F(LocalEngineTest, ACallThatEndsFreesMemoryUnderNoLock) {
  std::unique_ptr<LocalEngine> engine;
  std::atomic<Flight*> ending = nullptr;
  std::atomic<int> freed = 0;
  device_->before_decommit = [&] {
    Flight* const flight = ending;
    if (flight == nullptr || flight->ended.HasBeenNotified()) return;
    ++freed;
    flight->handle->Cancel(absl::CancelledError("again"));  // These take the call's lock and the engine's.
    EXPECT_EQ(engine->Models().size(), 1u);
  };
  std::vector<std::unique_ptr<Flight>> flights;
  engine = MakeEngine(17 << 20);
  // Whether there is something to free depends on how far the transfers are.
  for (int round = 0; freed == 0; ++round) {
    ASSERT_LT(round, 1000) << "a call that ended never freed memory";
    absl::Notification submitted;
    flights.push_back(Send(*engine, MakeCall(ProfileNamed("resident")), [&](const ForwardProgress& progress) {
      submitted.WaitForNotification();
      if (progress.modules_done != 3) return;
      Flight* const flight = flights.back().get();
      flights.push_back(Send(*engine, MakeCall(ProfileNamed("resident"), 768, 768)));  // Waits for what this one holds.
      ending = flight;
      flight->handle->Cancel(absl::CancelledError("enough"));
    }));
    Flight* const flight = flights.back().get();
    submitted.Notify();
    EXPECT_THAT(flight->Wait(), StatusIs(absl::StatusCode::kCancelled, "enough"));
    flights.back()->handle->Cancel(absl::CancelledError("not needed"));
    flights.back()->Wait().IgnoreError();
  }
  engine.reset();
}

TEST_F(LocalEngineTest, EndsAWaitingCallAtItsDeadline) {
  const auto engine = MakeEngine(64 << 20, /*max_riders=*/1);
  absl::Notification held, go;
  const auto first = Send(*engine, MakeCall(ProfileNamed("disk")), [&](const ForwardProgress& progress) {
    if (progress.modules_done != 1) return;
    held.Notify();
    go.WaitForNotification();
  });
  held.WaitForNotification();
  ForwardCall call = MakeCall(ProfileNamed("disk"));
  call.deadline = absl::Now();
  const auto second = Send(*engine, std::move(call));
  EXPECT_THAT(second->Wait(), StatusIs(absl::StatusCode::kDeadlineExceeded, "deadline"));
  EXPECT_EQ(engine->Residency().waiting(), 0);
  go.Notify();  // Until now the first call held the executor.
  EXPECT_THAT(first->Wait(), IsOk());
}

TEST_F(LocalEngineTest, TellsHowLargeAMemoryIs) {
  const auto engine = MakeEngine();
  for (const Memory memory : {Memory::kDevice, Memory::kHost}) {
    EXPECT_EQ(*engine->MemoryBytes(memory), device_->MemoryStatusOf(memory)->total_bytes);
  }
}

TEST_F(LocalEngineTest, WhatThisProcessHoldsCountsForNobodyElse) {
  const auto engine = MakeEngine();
  const std::vector<char> own(64 << 20, 'x');
  const volatile char* const read = own.data();  // Or there need be no such memory.
  device_->told_memory = MemoryStatus{int64_t{1} << 40, (int64_t{1} << 40) - (32 << 20)};
  EXPECT_EQ(engine->Residency().devices[0].other_processes_bytes, 0);
  device_->told_memory->available_bytes = 0;
  EXPECT_LE(engine->Residency().devices[0].other_processes_bytes, (int64_t{1} << 40) - (64 << 20));
  EXPECT_GT(engine->Residency().devices[0].other_processes_bytes, int64_t{1} << 39);
  EXPECT_EQ(read[own.size() - 1], 'x');
}

TEST_F(LocalEngineTest, SaysWhatWouldFitInsteadOfWhatNeverCan) {
  const auto engine = MakeEngine(16 << 20);
  const auto flight = Send(*engine, MakeCall(ProfileNamed("disk"), 2048, 2048));
  EXPECT_THAT(flight->Wait(), StatusIs(absl::StatusCode::kFailedPrecondition, "pixels fit"));
}

TEST_F(LocalEngineTest, ACallWhoseFirstReportFailsIsTold) {
  const auto engine = MakeEngine();
  const auto flight =
      Send(*engine, MakeCall(ProfileNamed("disk")), [](const ForwardProgress&) { throw std::bad_alloc(); });
  EXPECT_TRUE(flight->ended.WaitForNotificationWithTimeout(absl::Seconds(60)));
  EXPECT_FALSE(flight->result.ok());
  Output(*engine, MakeCall(ProfileNamed("disk")));
}

TEST_F(LocalEngineTest, ARefusalDoesNotWaitForWhatIsComputed) {
  const auto engine = MakeEngine(16 << 20);
  absl::Notification computing, go;
  const auto first = Send(*engine, MakeCall(ProfileNamed("disk")), [&](const ForwardProgress& progress) {
    if (progress.modules_done != 1) return;
    computing.Notify();
    go.WaitForNotification();
  });
  computing.WaitForNotification();
  const auto refused = Send(*engine, MakeCall(ProfileNamed("disk"), 2048, 2048));
  EXPECT_TRUE(refused->ended.HasBeenNotified());
  go.Notify();
  EXPECT_THAT(refused->Wait(), StatusIs(absl::StatusCode::kFailedPrecondition, "pixels fit"));
  EXPECT_THAT(first->Wait(), IsOk());
}

// Before any thread uses LibTorch: it looks for its allocator without a lock.
TEST_F(LocalEngineTest, HasItsAllocatorBeforeTheFirstRequest) {
  const auto engine = MakeEngine();
  EXPECT_NE(c10::GetCPUAllocator(), c10::GetDefaultCPUAllocator());
}

TEST_F(LocalEngineTest, RefusesAModelThatIsNotThere) {
  const auto engine = MakeEngine();
  ForwardCall call = MakeCall(ProfileNamed("disk"));
  call.model = "huge";
  EXPECT_THAT(Send(*engine, std::move(call))->Wait(), StatusIs(absl::StatusCode::kNotFound, "'huge'"));
}

// On a device that computes bfloat16 in float32, as on one that does not.
TEST_F(LocalEngineTest, DiffusersRoundsTheTimestepOfABFloat16Profile) {
  const auto engine = MakeEngine();
  ASSERT_THAT(engine->LoadModel({"diffusers", folder_ / "model", Numerics::kDiffusers}), IsOk());
  Profile exact = ProfileNamed("disk"), narrow = exact;
  exact.computation.dtype = DType::kFloat32;
  narrow.computation.dtype = DType::kBFloat16;
  const auto output = [&](const std::string& model, const Profile& profile, float timestep) {
    ForwardCall call = MakeCall(profile);
    call.model = model;
    call.inputs.timestep.fill_(timestep);
    return Output(*engine, call);
  };
  EXPECT_TRUE(at::equal(output("tiny", exact, 0.987f), output("tiny", narrow, 0.987f)));
  EXPECT_FALSE(at::equal(output("diffusers", exact, 0.987f), output("diffusers", narrow, 0.987f)));
}

TEST_F(LocalEngineTest, ServesBFloat16OnManyThreads) {
  const auto native = MakeCpuDevice(CpuBFloat16::kNative);
  LocalEngineOptions options;
  options.host_budget_bytes = 64 << 20;
  options.transfer_threads = 1;
  options.threads = 16;
  const auto engine = LocalEngine::Make(options, {{native.get(), 128 << 20}}, &clock_);
  ASSERT_THAT((*engine)->LoadModel({"tiny", folder_ / "model"}), IsOk());
  EXPECT_THAT(Send(**engine, MakeCall(ProfileNamed("disk"), 448, 448))->Wait(), IsOk());
}

TEST_F(LocalEngineTest, RefusesNewCallsWhileItDrains) {
  const auto engine = MakeEngine();
  const auto before = Send(*engine, MakeCall(ProfileNamed("disk")));
  engine->Drain(absl::InfiniteDuration());
  EXPECT_THAT(before->Wait(), IsOk()) << "accepted work finishes";
  EXPECT_THAT(Send(*engine, MakeCall(ProfileNamed("disk")))->Wait(),
              StatusIs(absl::StatusCode::kUnavailable, "stopping"));
}

// Stands still, but for one thread: to that two hours pass from its first question to its second.
class LeapingClock final : public Clock {
 public:
  absl::Duration Now() const override {
    if (std::this_thread::get_id() != leaper_ || !asked_.exchange(true)) return absl::ZeroDuration();
    if (!leapt_.HasBeenNotified()) leapt_.Notify();
    return absl::Hours(2);
  }
  // The calling thread is the one.
  void Begin() { leaper_ = std::this_thread::get_id(); }
  void WaitForLeap() const { leapt_.WaitForNotification(); }

 private:
  std::atomic<std::thread::id> leaper_;
  mutable std::atomic<bool> asked_ = false;
  mutable absl::Notification leapt_;
};

TEST_F(LocalEngineTest, DrainsAsLongAsItsClockSays) {
  LeapingClock clock;
  const auto engine = LocalEngine::Make({64 << 20}, {{device_.get(), 64 << 20}}, &clock);
  ASSERT_THAT(engine, IsOk());
  ASSERT_THAT((*engine)->LoadModel({"tiny", folder_ / "model"}), IsOk());
  const auto flight = Send(**engine, MakeCall(ProfileNamed("disk")), [&](const ForwardProgress& progress) {
    if (progress.modules_done == 1) clock.WaitForLeap();
  });
  clock.Begin();
  (*engine)->Drain(absl::Hours(1));
  EXPECT_TRUE(flight->ended.HasBeenNotified());
}

}  // namespace
}  // namespace ditserve
