// What requests hold in the host's memory, where the device computes in memory of its own.
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <string>

#include "core/base/error_details.h"
#include "tests/server/engine/denoise_fixture.h"

namespace ditserve {
namespace {

class HostPartTest : public DenoiseTest {
 protected:
  HostPartTest() {
    device_->apart = true;
    // What others take is none of its runtime's.
    device_->told_memory = {int64_t{1} << 34, int64_t{1} << 34};
  }

  // Guided, of 2 pictures and long prompts.
  ForwardCall LongLoop(int64_t tokens, int64_t side = kSide) const {
    ForwardCall call = Loop(2, 4.0, "disk", 2);
    call.inputs.latents = at::zeros({2, 16, side / 8, side / 8});
    call.inputs.prompt_emb = at::zeros({1, tokens, 64}).expand({2, -1, -1});
    call.inputs.prompt_emb_mask = at::Tensor();
    call.denoising->guidance->prompt_emb = call.inputs.prompt_emb;
    call.denoising->guidance->prompt_emb_mask = at::Tensor();
    return call;
  }
  static int64_t OnHost(LocalEngine& engine) { return engine.Residency().host.usage.activations_bytes; }
};

TEST_F(HostPartTest, IsBookedAsLongAsALoopOrAPassLasts) {
  const auto engine = MakeEngine();
  EXPECT_EQ(OnHost(*engine), 0);
  const ForwardCall loop = LongLoop(512);
  int64_t most = 0;
  const auto note = [&](const ForwardProgress&) { most = std::max(most, OnHost(*engine)); };
  ASSERT_THAT(Send(*engine, loop, note)->Wait(), IsOk());
  EXPECT_GE(most, LoopBytes(loop.inputs, *loop.denoising));
  engine->Drain(absl::InfiniteDuration());
  EXPECT_EQ(OnHost(*engine), 0);
}

TEST_F(HostPartTest, OfAPassIsItsInputsAndItsOutput) {
  const auto engine = MakeEngine();
  const ForwardCall call = MakeCall(ProfileNamed("disk"), 256, 256);
  int64_t most = 0;
  ASSERT_THAT(Send(*engine, call, [&](const ForwardProgress&) { most = std::max(most, OnHost(*engine)); })->Wait(),
              IsOk());
  EXPECT_GT(most, static_cast<int64_t>(2 * call.inputs.latents.nbytes()));
  EXPECT_LT(most, 4 << 20);
}

TEST_F(HostPartTest, ThatDoesNotFitIsRefusedAndToldASizeAtWhichItRuns) {
  const auto engine = MakeEngine(512 << 20);
  const int64_t taken = engine->Residency().host.usage.total_bytes();
  EXPECT_THAT(engine->SetBudget(Memory::kHost, taken + (8 << 20)), IsOk());
  const absl::Status refused = Send(*engine, LongLoop(16, 1024))->Wait().status();
  ASSERT_THAT(refused, StatusIs(absl::StatusCode::kFailedPrecondition, "bytes of host memory"));
  EXPECT_EQ(ShortageOf(refused)->memory, Memory::kHost);
  const std::string text(refused.message());
  const size_t end = text.find(" pixels fit"), begin = text.rfind(' ', end - 1) + 1;
  ASSERT_NE(end, std::string::npos) << text;
  const int64_t side = std::stoll(text.substr(begin, end - begin));
  EXPECT_THAT(Send(*engine, LongLoop(16, side))->Wait(), IsOk()) << side;
}

TEST_F(HostPartTest, CopiesOnTheHostGoForIt) {
  const auto engine = MakeEngine();
  const ForwardCall loop = LongLoop(512);
  int64_t bytes = 0;
  const auto note = [&](const ForwardProgress&) { bytes = std::max(bytes, OnHost(*engine)); };
  ASSERT_THAT(Send(*engine, loop, note)->Wait(), IsOk());
  ASSERT_THAT(Send(*engine, MakeCall(ProfileNamed("host-offload")))->Wait(), IsOk());
  const int64_t before = engine->Residency().host.usage.weights_bytes;
  ASSERT_GT(before, 0);
  // Room for the loop alone.
  EXPECT_THAT(engine->SetBudget(Memory::kHost, engine->Residency().host.usage.staging_bytes + bytes), IsOk());
  EXPECT_THAT(Send(*engine, loop)->Wait(), IsOk());
  EXPECT_LT(engine->Residency().host.usage.weights_bytes, before);
}

}  // namespace
}  // namespace ditserve
