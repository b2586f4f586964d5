// Modulation that is kept in a device's own memory: loops that make it there, read it and share it.
#include <ATen/ops/equal.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "models/modulation.h"
#include "tests/cuda_double/engine_on_cuda.h"

namespace ditserve {
namespace {

class CudaEngineModulationTest : public CudaEngineTest {
 protected:
  // Of bfloat16.
  static int64_t RowBytes() { return 2 * ModulationElements(TinyConfig()); }
  static ModulationInfo Kept(const Engine& engine) { return engine.Residency().devices[0].modulation; }
  ForwardCall Loop(int64_t steps, const char* profile = "disk") const {
    return GuidedLoop(steps, ProfileNamed(profile));
  }
};

TEST_F(CudaEngineModulationTest, ALoopHasTheSameBitsWhetherRowsAreKeptFindNoRoomOrWentForOthers) {
  cuda_double::Options options;
  options.device_bytes = int64_t{1} << 30;
  options.granule_bytes = 64 << 10;  // So that there is room for a few.
  cuda_double::Begin(options);
  const std::unique_ptr<Device> gpu = MakeGpu();
  const auto engine = MakeKeepingOn(*gpu, 7 * RowBytes());
  const ForwardCall loop = Loop(9), other = Loop(5);
  EXPECT_TRUE(at::equal(Output(*engine, loop), Expected(loop)));
  EXPECT_EQ(Kept(*engine).rows, 7);
  EXPECT_EQ(Kept(*engine).used_bytes, 7 * RowBytes());
  EXPECT_EQ(Kept(*engine).hits, 6);
  EXPECT_EQ(Kept(*engine).misses, 3) << "the first step, and two that found no room";
  EXPECT_TRUE(at::equal(Output(*engine, other), Expected(other)));
  EXPECT_EQ(Kept(*engine).hits, 6 + 4);
  EXPECT_GT(Kept(*engine).evictions, 0);
  EXPECT_TRUE(at::equal(Output(*engine, loop), Expected(loop))) << "what had gone is made anew";
  EXPECT_TRUE(at::equal(Output(*engine, loop), Expected(loop)));
}

TEST_F(CudaEngineModulationTest, LoopsAtOnceShareRowsAndGetWhatEachGetsAlone) {
  const ForwardCall loop = Loop(5), other = Loop(4, "resident");
  const at::Tensor expected = Expected(loop), expected_other = Expected(other);
  for (uint32_t seed = 1; seed <= 6; ++seed) {
    Begin(seed);
    {
      const std::unique_ptr<Device> gpu = MakeGpu();
      const auto engine = MakeKeepingOn(*gpu, 1 << 20);
      const auto first = Send(*engine, loop), second = Send(*engine, loop), third = Send(*engine, other);
      ASSERT_THAT(first->Wait(), IsOk());
      ASSERT_THAT(second->Wait(), IsOk());
      ASSERT_THAT(third->Wait(), IsOk());
      EXPECT_TRUE(at::equal(first->result->output, expected)) << seed;
      EXPECT_TRUE(at::equal(second->result->output, expected)) << seed;
      EXPECT_TRUE(at::equal(third->result->output, expected_other)) << seed;
      EXPECT_EQ(Kept(*engine).hits + Kept(*engine).misses, 5 + 5 + 4);
      EXPECT_GE(Kept(*engine).hits, 4) << "of whichever made them";
    }
    End();
  }
}

// In the step that makes the rows of all, and in those that read them, beside one that shares them.
TEST_F(CudaEngineModulationTest, WhereverALoopIsCancelledTheRowsThatStayAreRight) {
  const std::unique_ptr<Device> gpu = MakeGpu();
  const ForwardCall loop = Loop(3);
  const at::Tensor expected = Expected(loop);
  const QwenImageDiT model(TinyConfig());
  const int makes = model.modules_used(), reads = makes - static_cast<int>(model.modulation_modules().size());
  for (const int at : {0, makes / 2, makes - 1, makes, makes + reads / 2, makes + reads, makes + reads + reads / 2}) {
    const auto engine = MakeKeepingOn(*gpu, 1 << 20);
    std::shared_ptr<ForwardHandle> handle;
    absl::Notification submitted;
    const auto cancelled = Send(*engine, loop, [&](const ForwardProgress& progress) {
      submitted.WaitForNotification();
      if (progress.modules_done >= at) handle->Cancel(absl::CancelledError("enough"));
    });
    handle = cancelled->handle;
    const auto beside = Send(*engine, loop);
    submitted.Notify();
    EXPECT_THAT(cancelled->Wait(), StatusIs(absl::StatusCode::kCancelled, "enough")) << at;
    ASSERT_THAT(beside->Wait(), IsOk());
    EXPECT_TRUE(at::equal(beside->result->output, expected)) << at;
    EXPECT_TRUE(at::equal(Output(*engine, loop), expected)) << at;
    EXPECT_EQ(Kept(*engine).rows, 3) << at;
    engine->Drain(absl::InfiniteDuration());
    EXPECT_EQ(engine->Residency().devices[0].memory.usage.activations_bytes, 0) << at;
  }
}

}  // namespace
}  // namespace ditserve
