// What the engine's passes ask of host memory, which is pinned: to register it costs more than to copy it.
#include <ATen/ops/equal.h>

#include <cstdint>
#include <cstdio>
#include <memory>

#include "core/devices/cuda_host_memory.h"
#include "models/seeded_checkpoint.h"
#include "tests/cuda_double/engine_on_cuda.h"

namespace ditserve {
namespace {

using CudaEngineHostTest = CudaEngineTest;

// Of modules of several sizes there is room for some; no more is registered in five passes than what there is once.
TEST_F(CudaEngineHostTest, WeightsThatFitHostMemoryInPartHaveItRegisteredSeldom) {
  SeededCheckpointOptions wide;
  wide.config = TinyConfig();
  wide.config.num_attention_heads = 8;
  wide.config.attention_head_dim = 64;
  wide.config.axes_dims_rope = {16, 24, 24};
  ASSERT_THAT(WriteSeededCheckpoint(wide, folder_ / "wide", nullptr, nullptr), IsOk());
  const std::unique_ptr<Device> gpu = MakeGpu();
  const auto engine = MakeEngineOn(*gpu, int64_t{152} << 20);
  ASSERT_THAT(engine->LoadModel({"wide", folder_ / "wide"}), IsOk());
  ForwardCall call = MakeCall(ProfileNamed("host-offload"));
  call.model = "wide";
  const at::Tensor expected = Output(*engine, call);
  const MemoryUsage held = engine->Residency().host.usage;
  const int64_t room = held.weights_bytes * 6 / 10;
  ASSERT_THAT(engine->SetBudget(Memory::kHost, held.total_bytes() - held.weights_bytes + room), IsOk());
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(Output(*engine, call), expected));
  const int64_t before = cuda_double::Calls("cudaHostRegister");
  for (int i = 0; i < 5; ++i) {
    const auto flight = Send(*engine, call);
    ASSERT_THAT(flight->Wait(), IsOk());
    EXPECT_TRUE(at::equal(flight->result->output, expected));
    EXPECT_GT(flight->result->account.disk_read_bytes, 0) << "all of it has room";
  }
  const int64_t registered = cuda_double::Calls("cudaHostRegister") - before;
  const int64_t ranges = room / CudaHostMemory::kRangeBytes;
  std::printf("five passes register %d ranges of %d\n", static_cast<int>(registered), static_cast<int>(ranges));
  EXPECT_LE(registered, ranges);
}

}  // namespace
}  // namespace ditserve
