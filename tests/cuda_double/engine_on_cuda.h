#ifndef DITSERVE_TESTS_CUDA_DOUBLE_ENGINE_ON_CUDA_H_
#define DITSERVE_TESTS_CUDA_DOUBLE_ENGINE_ON_CUDA_H_

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "core/devices/device_module.h"
#include "tests/cuda_double/cuda_double.h"
#include "tests/server/engine/local_engine_fixture.h"

namespace ditserve {

// The engine on the CUDA device, on the double of its runtime.
class CudaEngineTest : public LocalEngineTest {
 protected:
  CudaEngineTest() { Begin(/*seed=*/1); }
  ~CudaEngineTest() override { End(); }

  static void Begin(uint32_t seed, const void* left_out = nullptr) {
    cuda_double::Options options;
    options.seed = seed;
    cuda_double::Begin(options);
    cuda_double::DropSite(left_out);
  }

  // With no engine and device left: nothing was left behind either, but what LibTorch keeps for further activations.
  static void End() {
    while (cuda_double::Machine().RunSome()) {
    }
    c10::cuda::CUDACachingAllocator::emptyCache();
    for (const std::string& race : cuda_double::Machine().TakeRaces()) ADD_FAILURE() << race;
    EXPECT_EQ(absl::StrJoin(cuda_double::Leaks(), "\n"), "");
  }

  static std::unique_ptr<Device> MakeGpu(int index = 0) {
    std::string error;
    std::unique_ptr<Device> device(DitserveMakeDevice(index, Memory::kDevice, &error));
    EXPECT_NE(device, nullptr) << error;
    return device;
  }

  std::unique_ptr<LocalEngine> MakeEngineOn(Device& device, int64_t device_budget = int64_t{512} << 20,
                                            int64_t host_budget = int64_t{512} << 20) const {
    LocalEngineOptions options;
    options.device_budget_bytes = device_budget;
    options.host_budget_bytes = host_budget;
    options.threads = 1;
    options.transfer_threads = 2;
    auto engine = LocalEngine::Make(options, &device, &clock_);
    EXPECT_THAT(engine, IsOk());
    EXPECT_THAT((*engine)->LoadModel({"tiny", folder_ / "model"}), IsOk());
    return *std::move(engine);
  }
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_CUDA_DOUBLE_ENGINE_ON_CUDA_H_
