// The real model in the real engine on the CUDA device: LibTorch's CPU kernels, late, on the double's streams.
#include <ATen/ops/equal.h>

#include "tests/cuda_double/engine_on_cuda.h"

namespace ditserve {
namespace {

TEST_F(CudaEngineTest, EveryProfileGivesWhatTheCpuGivesBitForBit) {
  const std::unique_ptr<Device> cpu = MakeCpuDevice(CpuBFloat16::kNative), gpu = MakeGpu();
  const auto on_cpu = MakeEngineOn(*cpu), on_gpu = MakeEngineOn(*gpu);
  for (const Profile& profile : profiles_) {
    const ForwardCall call = MakeCall(profile);
    EXPECT_TRUE(at::equal(Output(*on_gpu, call), Output(*on_cpu, call))) << profile.name;
  }
}

}  // namespace
}  // namespace ditserve
