// What only a GPU can show, and what is checked there once more: the engine with a model of 3 blocks, and the device's
// own promises. The same tests run on a double of the CUDA runtime, which shows that they are right.
#include "tests/gpu/gpu.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/norm.h>
#include <ATen/ops/sub.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/devices/cast.h"
#include "core/devices/float8_rows.h"
#include "core/placement/route_maker.h"
#include "tests/server/engine/local_engine_fixture.h"

namespace ditserve {
namespace {

constexpr int64_t kMiB = 1 << 20;
// For what a GPU's runtime and LibTorch take for good, some hundred MiB, and all that passes of such a model want.
constexpr int64_t kRoomy = 1536 * kMiB;

class GpuTest : public LocalEngineTest {
 protected:
  GpuTest() {
    for (const char* dtype : {"float8_e4m3fn", "int8"}) {
      VramConfig config;
      config.offload_dtype = config.onload_dtype = config.preparing_dtype = config.computation_dtype = dtype;
      config.offload_device = config.onload_device = "cpu";
      config.preparing_device = config.computation_device = "accelerator";
      const absl::StatusOr<Profile> profile =
          ResolveProfile(absl::StrCat(dtype, " operations"), config, 0, {{"cuda:0"}, {"Linear", "RMSNorm"}}, "test");
      profile.ok() ? profiles_.push_back(*profile) : refused_.push_back(dtype);
    }
    Profile float32 = ProfileNamed("disk");
    float32.name = "float32";
    float32.preparing.dtype = float32.computation.dtype = DType::kFloat32;
    profiles_.push_back(float32);
    std::erase_if(profiles_, [&](const Profile& profile) {
      if (CheckComputation(profile, *gpu_).ok()) return false;
      refused_.push_back(profile.name);
      return true;
    });
  }

  // What a pass of this profile may differ from one in float32, of the norm of its output.
  static double ToleranceOf(const Profile& profile) {
    switch (profile.computation.dtype) {
      case DType::kFloat32:
        return 1e-4;
      case DType::kBFloat16:
        return 2e-2;
      default:
        return 1.5e-1;
    }
  }

  static double DistanceOf(const at::Tensor& output, const at::Tensor& expected) {
    const at::Tensor exact = expected.to(at::kDouble);
    return at::norm(at::sub(output.to(at::kDouble), exact)).item<double>() / at::norm(exact).item<double>();
  }

  // For the table that the program prints.
  static void Tell(const std::string& seen) { RecordProperty("seen", seen); }

  const GpuScope scope_;
  // The process' first: it knows what the context takes, and engines book that.
  const std::unique_ptr<Device> gpu_ = OpenGpu();
  std::vector<std::string> refused_;  // What can't be computed: dtypes, and profiles that this GPU can't.
};

TEST_F(GpuTest, EveryProfileIsAsCloseToTheCpuInFloat32AsItsDtypeLets) {
  const std::unique_ptr<Device> cpu = MakeCpuDevice(CpuBFloat16::kFloat32);
  const auto on_cpu = MakeEngineOn(*cpu), on_gpu = MakeEngineOn(*gpu_, kRoomy);
  std::vector<std::string> seen;
  for (const Profile& profile : profiles_) {
    Profile exact = profile;
    exact.computation.dtype = DType::kFloat32;
    for (const int64_t side : {64, 256}) {
      const double distance =
          DistanceOf(Output(*on_gpu, MakeCall(profile, side)), Output(*on_cpu, MakeCall(exact, side)));
      EXPECT_LE(distance, ToleranceOf(profile)) << profile.name << ", " << side;
      seen.push_back(absl::StrFormat("%s %.1e", profile.name, distance));
    }
  }
  if (!refused_.empty()) seen.push_back(absl::StrCat("not computed in: ", absl::StrJoin(refused_, ", ")));
  Tell(absl::StrJoin(seen, "; "));
}

TEST_F(GpuTest, WhatIsResidentAndWhoElseRidesNeverChangesABit) {
  const auto roomy = MakeEngineOn(*gpu_, kRoomy);
  std::vector<at::Tensor> alone;
  for (const Profile& profile : profiles_) {
    alone.push_back(Output(*roomy, MakeCall(profile)));
    EXPECT_TRUE(at::equal(Output(*roomy, MakeCall(profile)), alone.back())) << profile.name << ", again";
  }
  for (const int64_t beside : {16 * kMiB, 24 * kMiB, 56 * kMiB}) {
    const auto engine = MakeEngineOn(*gpu_, kRoomy);
    // Beside what is taken for good. Warming up takes more than some.
    const int64_t budget = engine->Residency().devices[0].memory.usage.total_bytes() + beside;
    EXPECT_THAT(engine->SetBudget(Memory::kDevice, budget), IsOk());
    std::vector<std::unique_ptr<Flight>> flights;
    std::vector<size_t> sent;
    for (size_t i = 0; i < profiles_.size(); ++i) {
      // LibTorch's products in float8 may take 24 MiB on some GPUs.
      if (beside < 32 * kMiB && profiles_[i].computation.dtype == DType::kFloat8E4M3) continue;
      flights.push_back(Send(*engine, MakeCall(profiles_[i])));
      sent.push_back(i);
    }
    for (size_t i = 0; i < flights.size(); ++i) {
      ASSERT_THAT(flights[i]->Wait(), IsOk());
      const Profile& profile = profiles_[sent[i]];
      EXPECT_TRUE(at::equal(flights[i]->result->output, alone[sent[i]])) << profile.name << ", budget " << budget;
    }
  }
  Tell(absl::StrCat(profiles_.size(), " profiles, alone and together, 4 budgets: equal"));
}

// Eight that come while the first stands at its first module.
TEST_F(GpuTest, EightRidersGetWhatEachGetsAloneAndMoveTheBytesOfOne) {
  const auto engine = MakeEngineOn(*gpu_, kRoomy);
  const Profile profile = ProfileNamed("host-offload");
  std::vector<ForwardCall> calls;
  std::vector<at::Tensor> alone;
  int64_t of_one = 0;
  for (int i = 0; i < 8; ++i) {
    calls.push_back(MakeCall(profile, 32 + 16 * (i % 3), 32 + 16 * (i % 2), 1 + i));
    const auto flight = Send(*engine, calls.back());
    ASSERT_THAT(flight->Wait(), IsOk());
    alone.push_back(flight->result->output);
    of_one = flight->result->account.device_copy_bytes;
  }
  absl::Notification all_sent;
  std::vector<std::unique_ptr<Flight>> flights;
  for (const ForwardCall& call : calls) {
    flights.push_back(Send(*engine, call, [&](const ForwardProgress&) { all_sent.WaitForNotification(); }));
  }
  all_sent.Notify();
  int64_t moved = 0;
  int most = 0;
  for (size_t i = 0; i < flights.size(); ++i) {
    ASSERT_THAT(flights[i]->Wait(), IsOk());
    EXPECT_TRUE(at::equal(flights[i]->result->output, alone[i])) << i;
    moved += flights[i]->result->account.device_copy_bytes;
    most = std::max(most, flights[i]->result->account.riders);
  }
  EXPECT_EQ(most, 8);
  EXPECT_GT(of_one, 0);
  EXPECT_LE(moved, of_one * 11 / 10);
  Tell(absl::StrFormat("%d riders moved %.2f MB, one %.2f MB", most, static_cast<double>(moved) / 1e6,
                       static_cast<double>(of_one) / 1e6));
}

// Of so many steps that their rows do not fit into the least memory that the GPU gives.
TEST_F(GpuTest, LoopsHaveTheSameBitsWhereModulationIsKeptSharedAndEvicted) {
  std::vector<std::string> seen;
  for (const Profile& profile : profiles_) {
    if (profile.name != "disk" && profile.name != "float32") continue;
    const ForwardCall loop = GuidedLoop(6, profile);
    const at::Tensor expected = Output(*MakeEngineOn(*gpu_, kRoomy), loop);
    const auto engine = MakeKeepingOn(*gpu_, 1, kRoomy);
    const auto kept = [&] { return engine->Residency().devices[0].modulation; };
    for (int i = 0; i < 2; ++i) EXPECT_TRUE(at::equal(Output(*engine, loop), expected)) << profile.name;
    EXPECT_EQ(kept().misses, 1) << "the first step of the first";
    EXPECT_EQ(kept().hits, 5 + 6);
    const int64_t row_bytes = kept().used_bytes / 6;
    const int64_t room = engine->Residency().devices[0].memory.usage.modulation_bytes / row_bytes;
    // It ends when it has made them.
    std::shared_ptr<ForwardHandle> handle;
    absl::Notification sent;
    const auto many = Send(*engine, GuidedLoop(room + 10, profile), [&](const ForwardProgress& progress) {
      sent.WaitForNotification();
      if (progress.steps_done > 0) handle->Cancel(absl::CancelledError("enough"));
    });
    handle = many->handle;
    sent.Notify();
    EXPECT_THAT(many->Wait(), StatusIs(absl::StatusCode::kCancelled, "enough"));
    EXPECT_EQ(kept().rows, room);
    EXPECT_GT(kept().evictions, 0);
    const auto one = Send(*engine, loop), another = Send(*engine, loop);
    ASSERT_THAT(one->Wait(), IsOk());
    ASSERT_THAT(another->Wait(), IsOk());
    EXPECT_TRUE(at::equal(one->result->output, expected)) << profile.name;
    EXPECT_TRUE(at::equal(another->result->output, expected)) << profile.name;
    seen.push_back(absl::StrFormat("%s: room for %d rows, %d evicted", profile.name, room, kept().evictions));
  }
  Tell(absl::StrJoin(seen, "; "));
}

TEST_F(GpuTest, TheGpuGivesNoMoreThanTheBudget) {
  const auto available = [&]() -> int64_t {
    const absl::StatusOr<MemoryStatus> memory = gpu_->MemoryStatusOf(Memory::kDevice);
    EXPECT_THAT(memory, IsOk());
    return memory.ok() ? memory->available_bytes : 0;
  };
  // What libraries take for themselves when they are first asked.
  for (const Profile& profile : profiles_) Output(*MakeEngineOn(*gpu_, kRoomy), MakeCall(profile, 256, 256));
  // Beside what is taken for good, which is no less on other GPUs. The context was there before all of it, and the
  // slots.
  const int64_t budget = MakeEngineOn(*gpu_, kRoomy)->Residency().devices[0].memory.usage.total_bytes() + 84 * kMiB;
  const int64_t there_before = gpu_->runtime_bytes() + gpu_->staging_bytes(), measured_budget = budget - there_before;
  const int64_t before = available();
  std::atomic<int64_t> least = before;
  int64_t in_ledger = 0;
  {
    const auto engine = MakeEngineOn(*gpu_, budget);
    std::vector<std::unique_ptr<Flight>> flights;
    for (int i = 0; i < 2; ++i) {
      for (const Profile& profile : profiles_) {
        flights.push_back(Send(*engine, MakeCall(profile, 256, 256), [&](const ForwardProgress&) {
          least = std::min(least.load(), available());  // (One thread computes.)
        }));
      }
    }
    for (const auto& flight : flights) EXPECT_THAT(flight->Wait(), IsOk());
    in_ledger = engine->Residency().devices[0].memory.usage.peak_bytes;
  }
  EXPECT_LE(before - least, measured_budget);
  EXPECT_GT(before - least, 0);
  Tell(absl::StrFormat(
      "budget %d MB, the ledger's peak %.1f MB, cudaMemGetInfo's %.1f MB; before, the context (0: NVML told "
      "nothing) %.1f MB, slots %.1f MB",
      measured_budget / 1000000, static_cast<double>(in_ledger - there_before) / 1e6,
      static_cast<double>(before - least) / 1e6, static_cast<double>(gpu_->runtime_bytes()) / 1e6,
      static_cast<double>(gpu_->staging_bytes()) / 1e6));
}

TEST_F(GpuTest, ACoTenantGetsItsMemoryAndPassesGoOn) {
  constexpr int64_t kBudget = kRoomy;
  const auto engine = MakeEngineOn(*gpu_, kBudget, 512 * kMiB, /*follow_pressure=*/true);
  const ForwardCall call = MakeCall(ProfileNamed("dynamic"));
  const at::Tensor expected = Output(*engine, call);
  const auto in_force = [&] { return engine->Residency().devices[0].memory.usage.budget_bytes; };
  // The engine looks once a second.
  const auto await = [&](const std::function<bool()>& reached) {
    while (!reached()) EXPECT_TRUE(at::equal(Output(*engine, call), expected));
  };
  // It leaves what engines leave to others, and some for passes.
  const MemoryStatus memory = gpu_->MemoryStatusOf(Memory::kDevice).value();
  const int64_t left = std::max(memory.total_bytes / 50, 512 * kMiB) + 128 * kMiB;
  int64_t lowered = 0;
  {
    const CoTenant other(left);
    await([&] { return in_force() < kBudget; });
    lowered = in_force();
  }
  await([&] { return in_force() == kBudget; });
  Tell(absl::StrFormat("the budget fell from %d to %d MiB, and rose again", kBudget / kMiB, lowered / kMiB));
}

// Each block of threads finds the largest magnitude of a row wherever it stands.
TEST_F(GpuTest, RowsInFloat8AreTheCpusBitForBit) {
  constexpr int64_t kRows = 200, kColumns = 3072, kOut = 64;
  EXPECT_THAT(gpu_->BeginOperations(), IsOk());
  const int64_t granule = std::max(gpu_->granule_bytes(Memory::kHost), gpu_->granule_bytes(Memory::kDevice));
  const auto take = [&](Memory memory) {
    const absl::StatusOr<std::byte*> begin = gpu_->ReserveAddresses(memory, granule);
    EXPECT_THAT(gpu_->Commit(memory, begin.value(), granule), IsOk());
    return *begin;
  };
  std::byte *const host = take(Memory::kHost), *const there = take(Memory::kDevice);
  const auto move = [&](Memory from, Memory to, int64_t bytes) {
    const auto at = [&](Memory memory) { return IsHost(memory) ? host : there; };
    const auto moved =
        gpu_->Enqueue({{from, at(from), DType::kFloat8E4M3}, {}, {to, at(to), DType::kFloat8E4M3}, bytes}, {});
    ASSERT_THAT(moved, IsOk());
    EXPECT_THAT(WaitForAll({*moved}), IsOk());
  };
  // One after the other in the memory, each at a multiple of 256 bytes: x, bias; rows, both scales, the wide bias.
  std::vector<int64_t> begins;
  int64_t bytes = 0;
  for (const int64_t size : {kRows * kColumns * 2, kOut, kRows * kColumns, kRows * 4, kOut * 4, kOut * 2}) {
    begins.push_back(bytes);
    bytes += (size + 255) / 256 * 256;
  }
  ASSERT_LE(bytes, granule);
  std::memset(host, 0, static_cast<size_t>(bytes));
  auto* const x = reinterpret_cast<uint16_t*>(host);
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t i = 0; i < kColumns; ++i) x[row * kColumns + i] = static_cast<uint16_t>((row * 7 + i * 13) % 0x4380);
    // 1,000 and more, with either sign.
    x[row * kColumns + row * 37 % kColumns] = static_cast<uint16_t>((row % 2) << 15 | (0x447a + row));
  }
  const std::vector<uint16_t> rows(x, x + kRows * kColumns);
  std::memset(host + begins[1], 0x38, kOut);  // 1.
  move(Memory::kHost, Memory::kDevice, bytes);
  const auto tensor = [&](size_t at, at::IntArrayRef shape, at::ScalarType dtype) {
    return at::from_blob(there + begins[at], shape, at::TensorOptions(at::Device(gpu_->name())).dtype(dtype));
  };
  const auto operation =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("ditserve::float8_operands", "")
          .typed<void(const at::Tensor&, const at::Tensor&, at::Tensor&, at::Tensor&, at::Tensor&, at::Tensor&)>();
  at::Tensor quantized = tensor(2, {kRows, kColumns}, at::kFloat8_e4m3fn),
             row_scales = tensor(3, {kRows, 1}, at::kFloat), column_scales = tensor(4, {1, kOut}, at::kFloat),
             bias = tensor(5, {kOut}, at::kBFloat16);
  operation.call(tensor(0, {kRows, kColumns}, at::kBFloat16), tensor(1, {kOut}, at::kFloat8_e4m3fn), quantized,
                 row_scales, column_scales, bias);
  const auto computed = gpu_->RecordOperations();
  ASSERT_THAT(computed, IsOk());
  EXPECT_THAT(WaitForAll({*computed}), IsOk());
  move(Memory::kDevice, Memory::kHost, bytes);
  for (int64_t row = 0; row < kRows; ++row) {
    std::vector<uint8_t> expected(kColumns);
    const float scale = QuantizeRow(rows.data() + row * kColumns, kColumns, expected.data());
    EXPECT_GT(scale, 1) << row;
    EXPECT_EQ(std::memcmp(host + begins[3] + row * 4, &scale, 4), 0) << row;
    EXPECT_EQ(std::memcmp(host + begins[2] + row * kColumns, expected.data(), expected.size()), 0) << row;
  }
  for (const auto& [memory, begin] : {std::pair(Memory::kHost, host), {Memory::kDevice, there}}) {
    gpu_->Decommit(memory, begin, granule);
    gpu_->ReleaseAddresses(memory, begin, granule);
  }
  Tell(absl::StrCat(kRows, " rows of ", kColumns, ": equal"));
}

TEST_F(GpuTest, CastsAreTheCpusBitForBit) {
  constexpr int64_t kCount = 1 << 16;
  const auto bytes_of = [&](Memory memory) { return gpu_->granule_bytes(memory); };
  const auto take = [&](Memory memory) {
    const absl::StatusOr<std::byte*> begin = gpu_->ReserveAddresses(memory, bytes_of(memory));
    EXPECT_THAT(gpu_->Commit(memory, begin.value(), bytes_of(memory)), IsOk());
    return *begin;
  };
  std::byte *const from = take(Memory::kHost), *const there = take(Memory::kDevice), *const back = take(Memory::kHost);
  constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3};
  int cast = 0;
  for (const DType source : kDTypes) {
    // All values of up to 16 bits; of float32 those whose upper half is any.
    for (uint32_t i = 0; i < kCount; ++i) {
      const uint32_t bits = SizeOf(source) == 4 ? i << 16 | (i * 40503U & 0xffffU) : i;
      std::memcpy(from + i * SizeOf(source), &bits, SizeOf(source));
    }
    for (const DType target : kDTypes) {
      std::vector<std::byte> expected(static_cast<size_t>(kCount * SizeOf(target)));
      Cast(from, source, {}, expected.data(), target, kCount);
      const auto sent =
          gpu_->Enqueue({{Memory::kHost, from, source}, {}, {Memory::kDevice, there, target}, kCount}, {});
      ASSERT_THAT(sent, IsOk());
      const auto got =
          gpu_->Enqueue({{Memory::kDevice, there, target}, {}, {Memory::kHost, back, target}, kCount}, {*sent});
      ASSERT_THAT(got, IsOk());
      EXPECT_THAT((*got)->Wait(), IsOk());
      EXPECT_EQ(std::memcmp(back, expected.data(), expected.size()), 0) << Name(source) << " to " << Name(target);
      ++cast;
    }
  }
  for (const auto& [memory, begin] :
       {std::pair(Memory::kHost, from), {Memory::kDevice, there}, {Memory::kHost, back}}) {
    gpu_->Decommit(memory, begin, bytes_of(memory));
    gpu_->ReleaseAddresses(memory, begin, bytes_of(memory));
  }
  Tell(absl::StrCat(cast, " pairs of dtypes, 65,536 values each: equal"));
}

// In a process of its own, of which nothing else is asked any more.
TEST_F(GpuTest, AnIllegalAddressLosesTheDeviceAndEveryCallEndsWithWhy) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto lose = [this] {
    absl::Notification told;
    LocalEngineOptions options;
    options.host_budget_bytes = 128 * kMiB;
    options.on_device_lost = [&](const absl::Status&) { told.Notify(); };
    auto engine = LocalEngine::Make(options, {{gpu_.get(), kRoomy}}, &clock_);
    if (!engine.ok() || !(*engine)->LoadModel({"tiny", folder_ / "model"}).ok()) std::_Exit(2);
    const auto is_loss = [](const absl::Status& status) {
      std::fprintf(stderr, "%s\n", status.ToString().c_str());
      return absl::IsUnavailable(status) && absl::StrContains(status.message(), "cuda:0 is lost");
    };
    std::atomic<bool> reached = false;
    const auto under_way = Send(**engine, MakeCall(ProfileNamed("disk")), [&](const ForwardProgress& progress) {
      if (progress.modules_done >= 5 && !reached.exchange(true)) ReachForNoMemory(*gpu_);
    });
    const auto beside = Send(**engine, MakeCall(ProfileNamed("resident")));
    if (!is_loss(under_way->Wait().status()) || !is_loss(beside->Wait().status())) std::_Exit(1);
    told.WaitForNotification();
    const bool later = is_loss(Send(**engine, MakeCall(ProfileNamed("disk")))->Wait().status());
    engine->reset();  // It waits for nothing that will not come.
    std::_Exit(later ? 0 : 1);
  };
  EXPECT_EXIT(lose(), ::testing::ExitedWithCode(0), "cuda:0 is lost");
  Tell("three calls ended with UNAVAILABLE, the engine was destroyed");
}

}  // namespace
}  // namespace ditserve
