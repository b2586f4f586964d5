// Denoising loops in the engine: passes in one ride after the other, what is kept between them, and their ends.
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <map>

#include "models/activation_memory.h"
#include "models/denoising/flow_step.h"
#include "tests/server/engine/denoise_fixture.h"

namespace ditserve {
namespace {

TEST_F(DenoiseTest, ALoopHasTheBitsOfItsPassesOneByOneWhateverIsKept) {
  const auto alone = MakeKeeping(0);
  for (const std::optional<double> guidance : {std::optional<double>(), std::optional<double>(4.0)}) {
    const ForwardCall call = Loop(4, guidance, "disk", 2);
    const at::Tensor expected = Expected(*alone, call);
    EXPECT_EQ(expected.sizes(), (at::IntArrayRef{2, 16, kSide / 8, kSide / 8}));
    for (const int64_t kept : {0, 32 << 10, 1 << 20}) {
      EXPECT_TRUE(at::equal(Output(*MakeKeeping(kept), call), expected)) << kept;
    }
  }
}

TEST_F(DenoiseTest, AStepMovesTheModelOnceAndAfterTheFirstWithoutWhatMakesModulation) {
  const auto engine = MakeKeeping(1 << 20);
  const auto [all, modulation] = NeededBytes(*engine);
  for (const bool again : {false, true}) {
    const auto flight = Send(*engine, Loop(5, 4.0));
    ASSERT_THAT(flight->Wait(), IsOk());
    const int64_t first = again ? all - modulation : all;
    EXPECT_EQ(flight->result->account.disk_read_bytes, first + 4 * (all - modulation));
  }
  const auto keeps_nothing = MakeKeeping(0);
  ForwardProgress last;
  const auto nothing = Send(*keeps_nothing, Loop(5, 4.0), [&](const ForwardProgress& progress) { last = progress; });
  ASSERT_THAT(nothing->Wait(), IsOk());
  EXPECT_EQ(last.modules_done, 5 * keeps_nothing->Models().front().model->modules_used());
  EXPECT_EQ(last.modules_total, last.modules_done);
  EXPECT_FALSE(last.latents.defined()) << "nobody asked";
  EXPECT_EQ(nothing->result->account.disk_read_bytes, 5 * all);
}

// The second begins while the first one makes what both could keep.
TEST_F(DenoiseTest, EqualLoopsAtOnceShareTheModulationOfTheStepsToCome) {
  const auto engine = MakeKeeping(1 << 20);
  const QwenImageDiT& model = *engine->Models().front().model;
  constexpr int kSteps = 8;
  absl::Notification begun, go;
  const auto first = Send(*engine, Loop(kSteps, 4.0), [&](const ForwardProgress& progress) {
    if (progress.modules_done != 1) return;
    begun.Notify();
    go.WaitForNotification();
  });
  begun.WaitForNotification();
  ForwardProgress last;
  const auto second = Send(*engine, Loop(kSteps, 4.0), [&](const ForwardProgress& progress) { last = progress; });
  go.Notify();
  ASSERT_THAT(first->Wait(), IsOk());
  ASSERT_THAT(second->Wait(), IsOk());
  EXPECT_TRUE(at::equal(first->result->output, second->result->output));
  // That of its first step, and of as many as it may have joined before the first one's first step ended.
  const int used = model.modules_used(), made = static_cast<int>(model.modulation_modules().size());
  EXPECT_EQ(last.modules_done, last.modules_total);
  EXPECT_LE(last.modules_done, kSteps * used - (kSteps - 3) * made);
}

// They come while the first one is at its beginning.
TEST_F(DenoiseTest, DifferentLoopsAtOnceReadLittleMoreThanTheLongestOfThemAlone) {
  const auto bytes_read = [](const Engine& engine) {
    int64_t bytes = 0;
    for (const TransferTotal& total : engine.Residency().transfers)
      bytes += total.from == Tier::kDisk ? total.bytes : 0;
    return bytes;
  };
  const std::vector<ForwardCall> calls = {Loop(8, 4.0), Loop(7, std::nullopt), Loop(6, 3.0, "disk", 2),
                                          Loop(5, std::nullopt, "disk", 3)};
  const auto alone = MakeKeeping(1 << 20), engine = MakeKeeping(1 << 20);
  ASSERT_THAT(Send(*alone, calls.front())->Wait(), IsOk());
  const int64_t of_longest = bytes_read(*alone);
  absl::Notification begun, go;
  std::vector<std::unique_ptr<Flight>> flights;
  flights.push_back(Send(*engine, calls.front(), [&](const ForwardProgress& progress) {
    if (progress.modules_done != 1) return;
    begun.Notify();
    go.WaitForNotification();
  }));
  begun.WaitForNotification();
  for (size_t i = 1; i < calls.size(); ++i) flights.push_back(Send(*engine, calls[i]));
  go.Notify();
  int64_t charged = 0;
  for (size_t i = 0; i < calls.size(); ++i) {
    ASSERT_THAT(flights[i]->Wait(), IsOk());
    EXPECT_TRUE(at::equal(flights[i]->result->output, Expected(*alone, calls[i]))) << i;
    charged += flights[i]->result->account.disk_read_bytes;
  }
  EXPECT_GE(bytes_read(*engine), of_longest / 2) << "what stays for one is there for another";
  EXPECT_LE(bytes_read(*engine), of_longest * 6 / 5);
  // Each has its share of it. (Of what is read by several, halves and thirds of a byte are nobody's.)
  EXPECT_LE(charged, bytes_read(*engine));
  EXPECT_GE(charged, bytes_read(*engine) * 99 / 100);
}

TEST_F(DenoiseTest, ARefusedLoopIsToldASizeAtWhichItRuns) {
  const auto engine = MakeEngine(300 << 20);
  const auto loop = [&](int64_t height, int64_t width) {
    ForwardCall call = Loop(2, 4.0, "disk", 4);
    call.inputs.latents = at::zeros({4, 16, height / 8, width / 8});
    call.inputs.prompt_emb = at::zeros({1, 512, 64}).expand({4, -1, -1});
    call.inputs.prompt_emb_mask = at::Tensor();
    call.denoising->guidance->prompt_emb = call.inputs.prompt_emb;
    call.denoising->guidance->prompt_emb_mask = at::Tensor();
    return call;
  };
  const absl::Status refused = Send(*engine, loop(2048, 2048))->Wait().status();
  ASSERT_THAT(refused, StatusIs(absl::StatusCode::kFailedPrecondition, "pixels fit"));
  const std::string text(refused.message());
  const size_t end = text.find(" pixels fit"), begin = text.rfind(' ', end - 1) + 1;
  const int64_t side = std::stoll(text.substr(begin, end - begin));
  EXPECT_THAT(Send(*engine, loop(side, side))->Wait(), IsOk()) << side;
}

TEST_F(DenoiseTest, ALoopGoesOnFromTheLatentsOfAnyStep) {
  const auto engine = MakeKeeping(1 << 20);
  ForwardCall whole = Loop(6, 4.0);
  whole.denoising->latents_every = 1;
  std::map<int64_t, at::Tensor> after;
  std::vector<int64_t> steps;
  int most_done = 0, total = 0;
  const auto flight = Send(*engine, whole, [&](const ForwardProgress& progress) {
    EXPECT_GE(progress.modules_done, most_done);
    most_done = progress.modules_done;
    total = progress.modules_total;
    if (progress.latents.defined()) after[progress.steps_done] = progress.latents;
  });
  ASSERT_THAT(flight->Wait(), IsOk());
  EXPECT_EQ(after.size(), 6u);
  EXPECT_EQ(most_done, total);
  EXPECT_TRUE(at::equal(after[6], flight->result->output));
  for (const int64_t done : {1, 3, 5}) {
    ForwardCall rest = whole;
    rest.denoising->first_step = done;
    rest.inputs.latents = after[done];
    rest.inputs.timestep = LoopTimesteps(*rest.denoising, at::kFloat).narrow(0, 0, 1);
    EXPECT_TRUE(at::equal(Output(*engine, rest), flight->result->output)) << done;
  }
}

TEST_F(DenoiseTest, LatentsAreToldAfterTheStepsThatAreAskedFor) {
  const auto engine = MakeKeeping(1 << 20);
  ForwardCall call = Loop(5, std::nullopt);
  call.denoising->latents_every = 2;
  std::vector<int64_t> told;
  const auto flight = Send(*engine, call, [&](const ForwardProgress& progress) {
    if (progress.latents.defined()) told.push_back(progress.latents_after);
  });
  ASSERT_THAT(flight->Wait(), IsOk());
  EXPECT_EQ(told, (std::vector<int64_t>{2, 4}));
}

TEST_F(DenoiseTest, ALoopStartsFromNoiseOrAnImageThatIsAsNoisyAsItsFirstSigma) {
  const auto engine = MakeKeeping(1 << 20);
  const ForwardCall given = Loop(3, std::nullopt);
  ForwardCall seeded = given;
  seeded.denoising->start = LoopStart::kNoise;
  seeded.denoising->seeds = {7};
  seeded.inputs.latents = at::ones({1}).expand(given.inputs.latents.sizes());
  EXPECT_TRUE(at::equal(Output(*engine, seeded), Output(*engine, given)));
  ForwardCall pictured = seeded;
  pictured.denoising->start = LoopStart::kImage;
  pictured.denoising->image = at::full({1, 16, kSide / 8, kSide / 8}, 2.0f);
  ForwardCall noised = given;
  noised.inputs.latents = NoisedImage(engine->Models().front().model->config().numerics, pictured.denoising->image,
                                      given.inputs.latents, given.denoising->schedule.sigmas.front());
  EXPECT_TRUE(at::equal(Output(*engine, pictured), Output(*engine, noised)));
}

// What it is given may be a message's, which goes once the client has been told of a lost device.
TEST_F(DenoiseTest, ALoopReadsWhatItIsGivenBeforeItWaitsForTheFirstTime) {
  const auto engine = MakeKeeping(1 << 20);
  const auto make = [&] {
    ForwardCall call = Loop(3, 4.0);
    call.denoising->start = LoopStart::kImage;
    call.denoising->seeds = {7};
    call.denoising->image = at::full({1, 16, kSide / 8, kSide / 8}, 2.0f);
    call.denoising->mask = at::full({1, 1, kSide / 8, kSide / 8}, 0.5f);
    return call;
  };
  const at::Tensor expected = Output(*engine, make());
  for (const LoopStart start : {LoopStart::kImage, LoopStart::kLatents}) {
    ForwardCall call = make();
    call.denoising->start = start;
    const at::Tensor whole = start == LoopStart::kImage ? expected : Output(*engine, call);
    const ForwardInputs& inputs = call.inputs;
    const std::vector<at::Tensor> given = {inputs.latents, inputs.prompt_emb, call.denoising->guidance->prompt_emb,
                                           call.denoising->image, call.denoising->mask};
    const auto flight = Send(*engine, call, [&](const ForwardProgress& progress) {
      if (progress.modules_done != 1) return;
      for (const at::Tensor& tensor : given) tensor.fill_(NAN);
    });
    ASSERT_THAT(flight->Wait(), IsOk());
    EXPECT_TRUE(at::equal(flight->result->output, whole));
  }
}

// What both prompts and the steps take beside the passes.
TEST_F(DenoiseTest, ALoopTakesNoMoreMemoryThanIsBookedForIt) {
  class NoPasses final : public Laps {
   public:
    Task<at::Tensor> MakeLap(const ForwardInputs& inputs, int64_t) override {
      co_return at::zeros({inputs.latents.size(0), (kSide / 16) * (kSide / 16), 64});
    }
    void Stepped(int64_t, const at::Tensor&) override {}
  };
  ActivationMemory::InstallAllocator();
  const QwenImageDiTConfig config = TinyConfig();
  for (const std::optional<double> guidance : {std::optional<double>(), std::optional<double>(4.0)}) {
    ForwardCall call = Loop(3, guidance, "disk", 2);
    call.denoising->start = LoopStart::kImage;
    call.denoising->seeds = {7};
    call.denoising->image = at::full({2, 16, kSide / 8, kSide / 8}, 2.0f);
    call.denoising->mask = at::full({2, 1, kSide / 8, kSide / 8}, 0.5f);
    // So long that they are most of it.
    const at::Tensor prompts = at::randn({1, 1024, 64}).expand({2, -1, -1});
    call.inputs.prompt_emb = prompts;
    call.inputs.prompt_emb_mask = at::Tensor();
    if (guidance) call.denoising->guidance = {*guidance, prompts.narrow(1, 0, 1000), {}};
    const auto memory = std::make_shared<ActivationMemory>(LoopBytes(call.inputs, *call.denoising));
    const ActivationMemory::Scope scope(memory);
    NoPasses passes;
    Task<at::Tensor> loop = DenoiseLoop(config, call.inputs, *call.denoising, passes);
    loop.Start();
    EXPECT_NO_THROW(loop.Result());
    EXPECT_GE(memory->peak_bytes(), LoopBytes(call.inputs, *call.denoising) / 2);
  }
}

TEST_F(DenoiseTest, LoopsAndPassesAtOnceInLittleMemoryGetWhatEachGetsAlone) {
  const auto alone = MakeKeeping(0), engine = MakeKeeping(24 << 10, 12 << 20);
  std::vector<ForwardCall> calls;
  for (int i = 0; i < 9; ++i) {
    const char* const profile = i % 2 == 0 ? "disk" : "dynamic";
    calls.push_back(i % 3 == 2 ? MakeCall(ProfileNamed(profile), 48, 32)
                               : Loop(2 + i % 3, i % 3 == 0 ? std::optional<double>(3.0) : std::nullopt, profile));
  }
  std::vector<std::unique_ptr<Flight>> flights;
  for (const ForwardCall& call : calls) flights.push_back(Send(*engine, call));
  for (size_t i = 0; i < calls.size(); ++i) {
    ASSERT_THAT(flights[i]->Wait(), IsOk());
    const at::Tensor expected = calls[i].denoising ? Expected(*alone, calls[i]) : Output(*alone, calls[i]);
    EXPECT_TRUE(at::equal(flights[i]->result->output, expected)) << i;
  }
  engine->Drain(absl::InfiniteDuration());
  EXPECT_EQ(engine->Residency().devices[0].memory.usage.activations_bytes, 0);
}

// In the middle of a loop others come whose rows take the place of those that nobody holds, and the budget falls.
TEST_F(DenoiseTest, RowsThatGoAndABudgetThatFallsInMidSweepChangeNoBit) {
  constexpr int64_t kRow = (3 * 2 * 6 + 2) * 128 * 4;
  constexpr int64_t kBudget = 24 << 20;
  const auto engine = MakeKeeping(6 * kRow, kBudget);
  const auto [all, modulation] = NeededBytes(*engine);
  const ForwardCall loop = Loop(4, 4.0);
  const at::Tensor expected = Expected(*MakeKeeping(0), loop);
  int others = 0;
  const auto other = [&] {
    ForwardCall call = MakeCall(ProfileNamed("disk"), 64, 64);
    call.inputs.timestep = at::full({1}, 0.01 * ++others, at::kFloat);
    return call;
  };
  for (const bool kept : {false, true}) {
    std::vector<std::unique_ptr<Flight>> beside;
    const auto flight = Send(*engine, loop, [&](const ForwardProgress& progress) {
      if (progress.modules_done % 16 == 5) beside.push_back(Send(*engine, other()));
      const int64_t budget = progress.modules_done < 70 ? kBudget / 2 : kBudget;
      EXPECT_THAT(engine->SetBudget(Memory::kDevice, progress.modules_done < 20 ? kBudget : budget), IsOk());
    });
    ASSERT_THAT(flight->Wait(), IsOk());
    EXPECT_TRUE(at::equal(flight->result->output, expected)) << kept;
    EXPECT_GT(beside.size(), 4u);
    for (const auto& each : beside) EXPECT_THAT(each->Wait(), IsOk());
    // Has its rows made where others took them since, and leaves them to the loop that comes next.
    EXPECT_TRUE(at::equal(Output(*engine, loop), expected));
  }
  // Once so many others came, none of the loop's rows is left: it makes them anew.
  for (int i = 0; i < 6; ++i) Output(*engine, other());
  const auto anew = Send(*engine, loop);
  ASSERT_THAT(anew->Wait(), IsOk());
  EXPECT_TRUE(at::equal(anew->result->output, expected));
  EXPECT_EQ(anew->result->account.disk_read_bytes, all + 3 * (all - modulation));
}

TEST_F(DenoiseTest, WhereverItIsCancelledItEndsAndLeavesNothing) {
  const auto engine = MakeKeeping(1 << 20);
  for (const int at : {0, 5, 43, 44, 60, 95}) {
    std::shared_ptr<ForwardHandle> handle;
    absl::Notification sent;
    const auto flight = Send(*engine, Loop(3, 4.0), [&](const ForwardProgress& progress) {
      sent.WaitForNotification();
      if (progress.modules_done == at) handle->Cancel(absl::CancelledError("told so"));
    });
    handle = flight->handle;
    sent.Notify();
    EXPECT_THAT(flight->Wait(), StatusIs(absl::StatusCode::kCancelled, "told so")) << at;
  }
  const at::Tensor output = Output(*engine, Loop(3, 4.0));
  EXPECT_TRUE(at::equal(output, Expected(*MakeKeeping(0), Loop(3, 4.0))));
  engine->Drain(absl::InfiniteDuration());
  EXPECT_EQ(engine->Residency().devices[0].memory.usage.activations_bytes, 0);
}

}  // namespace
}  // namespace ditserve
