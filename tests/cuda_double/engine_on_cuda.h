#ifndef DITSERVE_TESTS_CUDA_DOUBLE_ENGINE_ON_CUDA_H_
#define DITSERVE_TESTS_CUDA_DOUBLE_ENGINE_ON_CUDA_H_

#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "core/devices/device_module.h"
#include "tests/cuda_double/cuda_double.h"
#include "tests/cuda_double/told_device.h"
#include "tests/server/engine/local_engine_fixture.h"

namespace ditserve {

// The engine on the CUDA device.
class CudaEngineTest : public LocalEngineTest {
 protected:
  CudaEngineTest() { Begin(/*seed=*/1); }
  ~CudaEngineTest() override { End(); }

  static void Begin(uint32_t seed, const void* left_out = nullptr) {
    cuda_double::Options options;
    options.seed = seed;
    options.device_bytes = int64_t{1} << 30;
    cuda_double::Begin(options);
    cuda_double::DropSite(left_out);
  }

  // With no engine and device left: nothing was left behind either.
  static void End() {
    while (cuda_double::Machine().RunSome()) {
    }
    for (const std::string& race : cuda_double::Machine().TakeRaces()) ADD_FAILURE() << race;
    EXPECT_EQ(absl::StrJoin(cuda_double::Leaks(), "\n"), "");
    EXPECT_EQ(cuda_double::Calls("cudaMalloc"), 0) << "all memory is the arena's";
  }

  // `memory`: by which an engine knows it.
  static std::unique_ptr<Device> MakeGpu(int index = 0, Memory memory = Memory::kDevice) {
    std::string error;
    std::unique_ptr<Device> device(DitserveMakeDevice(index, memory, &error));
    EXPECT_NE(device, nullptr) << error;
    return std::make_unique<ToldDevice>(std::move(device));
  }

  // What the CPU gives by the same kernels.
  at::Tensor Expected(const ForwardCall& call) {
    if (on_cpu_ == nullptr) on_cpu_ = MakeEngineOn(*cpu_);
    return Output(*on_cpu_, call);
  }

  // Calls of all profiles and of several sizes at once, of which each must get what it gets alone; the most that shared
  // a window. `between` is called after each was sent.
  int Ride(uint32_t seed, int riders, const std::function<void(Engine&, int rider)>& between = nullptr,
           int64_t device_budget = int64_t{120} << 20) {
    const std::unique_ptr<Device> gpu = MakeGpu();
    cuda_double::Machine().SetDurations([](const std::string& place) {
      return place == "cudaMemcpyAsync" ? absl::Milliseconds(1) : absl::ZeroDuration();
    });
    const auto engine = MakeEngineOn(*gpu);
    EXPECT_THAT(engine->SetBudget(Memory::kDevice, device_budget), IsOk());  // Warming up takes more than some.
    std::vector<ForwardCall> calls;
    std::vector<at::Tensor> expected;
    for (int i = 0; i < riders; ++i) {
      const int kind = i + static_cast<int>(seed);
      calls.push_back(MakeCall(profiles_[static_cast<size_t>(kind) % profiles_.size()], 32 + 16 * (kind % 3),
                               32 + 16 * (i % 2), 1 + i % 3));
      expected.push_back(Expected(calls.back()));
    }
    std::vector<std::unique_ptr<Flight>> flights;
    for (int i = 0; i < riders; ++i) {
      flights.push_back(Send(*engine, calls[static_cast<size_t>(i)]));
      if (between != nullptr) between(*engine, i);
    }
    int most = 0;
    for (size_t i = 0; i < flights.size(); ++i) {
      EXPECT_THAT(flights[i]->Wait(), IsOk());
      if (!flights[i]->result.ok()) continue;
      EXPECT_TRUE(at::equal(flights[i]->result->output, expected[i])) << "a wrong value, rider " << i;
      most = std::max(most, flights[i]->result->account.riders);
    }
    EXPECT_TRUE(gpu->CopySpeed().has_value()) << "the speed of its link is not known";
    return most;
  }

 private:
  const std::unique_ptr<Device> cpu_ = MakeCpuDevice(CpuBFloat16::kNative);
  std::unique_ptr<LocalEngine> on_cpu_;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_CUDA_DOUBLE_ENGINE_ON_CUDA_H_
