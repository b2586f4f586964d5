// Step caches of denoising loops in the engine: what they leave out, and that they decide the same whatever is there.
#include <ATen/ops/equal.h>

#include <set>

#include "tests/server/engine/denoise_fixture.h"

namespace ditserve {
namespace {

class StepCachedLoopTest : public DenoiseTest {
 protected:
  static constexpr double kAlways = 1e9;  // No step differs by so much.
  // At some steps the image differs by so much, or a branch of it, and at some not.
  static constexpr double NearFor(StepCacheRule rule) { return rule == StepCacheRule::kFirstBlock ? 1.1 : 0.6; }

  ForwardCall Cached(StepCacheRule rule, double threshold, int64_t steps, std::optional<double> guidance,
                     int64_t batch = 1, const char* profile = "disk") const {
    ForwardCall call = Loop(steps, guidance, profile, batch);
    // A polynomial that is the difference itself.
    call.denoising->step_cache = StepCacheOptions{rule, threshold, {0, 0, 0, 1, 0}};
    return call;
  }

  // Stored bytes of what a skipped step takes, where its modulation is kept, and how many modules that is.
  static std::pair<int64_t, int> TakenWhenSkipped(const Engine& engine, StepCacheRule rule) {
    const QwenImageDiT& model = *engine.Models().front().model;
    const std::vector<DType> dtypes = engine.Models().front().stored_dtypes;
    const std::vector<ModuleIndex>& makes = model.modulation_modules();
    const ModuleIndex ends = model.modules_used() - 1;  // proj_out.
    int64_t bytes = 0;
    int modules = 0;
    size_t parameter = 0;
    for (ModuleIndex i = 0; i <= ends; ++i) {
      const bool taken =
          (i < model.FirstLeftOut(rule) || i == ends) && !std::binary_search(makes.begin(), makes.end(), i);
      modules += taken;
      for (const ParameterSpec& spec : model.modules()[static_cast<size_t>(i)].parameters) {
        const int64_t of_parameter = ElementCount(spec.read_shape()) * SizeOf(dtypes[parameter++]);
        if (taken) bytes += of_parameter;
      }
    }
    return {bytes, modules};
  }

  static std::vector<std::tuple<int64_t, int64_t, int64_t, bool>> Reused(const ForwardResult& result) {
    std::vector<std::tuple<int64_t, int64_t, int64_t, bool>> reused;
    for (const ReusedStep& step : result.reused_steps) {
      reused.emplace_back(step.step, step.images, step.negative_images, step.skipped);
    }
    return reused;
  }
};

constexpr StepCacheRule kRules[] = {StepCacheRule::kFirstBlock, StepCacheRule::kTeaCache};

TEST_F(StepCachedLoopTest, ASkippedStepMovesNoBlockThatItLeavesOutAndIsTold) {
  const auto engine = MakeKeeping(1 << 20);
  const auto [all, modulation] = NeededBytes(*engine);
  const int used = engine->Models().front().model->modules_used();
  for (const StepCacheRule rule : kRules) {
    const auto fresh = MakeKeeping(1 << 20);
    const auto [taken, modules] = TakenWhenSkipped(*fresh, rule);
    EXPECT_LT(taken, all / 2);
    ForwardProgress last;
    std::vector<int64_t> skipped;  // Told so many at each end of a step.
    const auto flight = Send(*fresh, Cached(rule, kAlways, 5, 4.0), [&](const ForwardProgress& progress) {
      EXPECT_GE(progress.modules_done, last.modules_done);
      EXPECT_LE(progress.modules_done, progress.modules_total);
      if (progress.steps_done > last.steps_done) skipped.push_back(progress.steps_skipped);
      last = progress;
    });
    ASSERT_THAT(flight->Wait(), IsOk());
    EXPECT_EQ(flight->result->account.disk_read_bytes, all + 4 * taken);
    EXPECT_EQ(last.modules_done, used + 4 * modules);
    EXPECT_EQ(last.modules_total, last.modules_done);
    EXPECT_EQ(skipped, (std::vector<int64_t>{0, 1, 2, 3, 4}));
    using Steps = std::vector<std::tuple<int64_t, int64_t, int64_t, bool>>;
    EXPECT_EQ(Reused(*flight->result), (Steps{{1, 1, 1, true}, {2, 1, 1, true}, {3, 1, 1, true}, {4, 1, 1, true}}));
  }
  // Without one nothing is left out.
  const auto flight = Send(*engine, Loop(5, 4.0));
  ASSERT_THAT(flight->Wait(), IsOk());
  EXPECT_TRUE(flight->result->reused_steps.empty());
  EXPECT_EQ(flight->result->account.disk_read_bytes, all + 4 * (all - modulation));
}

TEST_F(StepCachedLoopTest, WhatMakesModulationIsTakenWhereThereIsNoRoomForIt) {
  for (const StepCacheRule rule : kRules) {
    const auto without = MakeKeeping(0), with = MakeKeeping(1 << 20);
    const ForwardCall call = Cached(rule, kAlways, 4, 4.0);
    const auto flight = Send(*without, call);
    ASSERT_THAT(flight->Wait(), IsOk());
    EXPECT_TRUE(at::equal(flight->result->output, Output(*with, call)));
    const auto [all, modulation] = NeededBytes(*without);
    EXPECT_GT(flight->result->account.disk_read_bytes, all + 3 * TakenWhenSkipped(*without, rule).first);
    EXPECT_LT(flight->result->account.disk_read_bytes, 4 * all);
  }
}

TEST_F(StepCachedLoopTest, NothingIsReusedThatDiffersByMore) {
  for (const StepCacheRule rule : kRules) {
    const auto engine = MakeKeeping(1 << 20);
    const auto flight = Send(*engine, Cached(rule, 1e-9, 4, 4.0));
    ASSERT_THAT(flight->Wait(), IsOk());
    EXPECT_TRUE(flight->result->reused_steps.empty());
    const auto [all, modulation] = NeededBytes(*engine);
    EXPECT_EQ(flight->result->account.disk_read_bytes, all + 3 * (all - modulation)) << "none of it is read twice";
    EXPECT_TRUE(at::equal(flight->result->output, Output(*engine, Loop(4, 4.0))));
  }
}

TEST_F(StepCachedLoopTest, TheSameIsReusedInAnyMemoryAndBesideAnybody) {
  const auto alone = MakeKeeping(1 << 20), small = MakeKeeping(24 << 10, 12 << 20);
  std::vector<ForwardCall> calls;
  for (const StepCacheRule rule : kRules) {
    for (const std::optional<double> guidance : {std::optional<double>(), std::optional<double>(4.0)}) {
      for (const char* const profile : {"disk", "dynamic"}) {
        calls.push_back(Cached(rule, NearFor(rule), 9, guidance, 2, profile));
      }
    }
  }
  std::vector<std::unique_ptr<Flight>> flights;
  for (const ForwardCall& call : calls) flights.push_back(Send(*small, call));
  std::set<size_t> in_part;
  for (size_t i = 0; i < calls.size(); ++i) {
    ASSERT_THAT(flights[i]->Wait(), IsOk());
    const auto expected = Send(*alone, calls[i]);
    ASSERT_THAT(expected->Wait(), IsOk());
    EXPECT_TRUE(at::equal(flights[i]->result->output, expected->result->output)) << i;
    EXPECT_EQ(Reused(*flights[i]->result), Reused(*expected->result)) << i;
    for (const ReusedStep& step : expected->result->reused_steps) {
      if (!step.skipped) in_part.insert(i);
    }
    const size_t reused = expected->result->reused_steps.size();
    EXPECT_TRUE(reused > 0 && reused < 8) << i << ": " << reused;
  }
  EXPECT_GT(in_part.size(), 0u) << "an image or a branch alone";
  small->Drain(absl::InfiniteDuration());
  EXPECT_EQ(small->Residency().devices[0].memory.usage.activations_bytes, 0);
}

TEST_F(StepCachedLoopTest, AnImageOfABatchIsReusedAsItIsAlone) {
  const auto engine = MakeKeeping(1 << 20);
  for (const StepCacheRule rule : kRules) {
    const ForwardCall both = Cached(rule, NearFor(rule), 9, std::nullopt, 2);
    const at::Tensor together = Output(*engine, both);
    for (int64_t i = 0; i < 2; ++i) {
      ForwardCall one = both;
      one.inputs.latents = both.inputs.latents.narrow(0, i, 1);
      one.inputs.timestep = both.inputs.timestep.narrow(0, i, 1);
      one.inputs.prompt_emb = both.inputs.prompt_emb.narrow(0, i, 1);
      one.inputs.prompt_emb_mask = both.inputs.prompt_emb_mask.narrow(0, i, 1);
      EXPECT_TRUE(at::equal(Output(*engine, one)[0], together[i])) << i;
    }
  }
}

// What is kept between steps is booked before the loop is let in.
TEST_F(StepCachedLoopTest, WhatIsKeptIsBooked) {
  ForwardCall call = Cached(StepCacheRule::kFirstBlock, kAlways, 2, std::nullopt);
  const auto booked = [&](const ForwardCall& of) {
    const auto engine = MakeKeeping(1 << 20);
    int64_t bytes = 0;
    const auto flight = Send(*engine, of, [&](const ForwardProgress& progress) {
      if (progress.modules_done == 1) bytes = engine->Residency().devices[0].memory.usage.activations_bytes;
    });
    EXPECT_THAT(flight->Wait(), IsOk());
    return bytes;
  };
  const int64_t with = booked(call);
  call.denoising->step_cache.reset();
  const int64_t kept = 2 * (kSide / 16) * (kSide / 16) * 128 * 4;  // A signal and a residual in float32.
  EXPECT_GE(with, booked(call) + kept);
}

TEST_F(StepCachedLoopTest, WhereverItIsCancelledItEndsAndLeavesNothing) {
  const auto engine = MakeKeeping(1 << 20);
  const ForwardCall call = Cached(StepCacheRule::kFirstBlock, kAlways, 3, 4.0);
  const int used = engine->Models().front().model->modules_used();
  const int left_in = TakenWhenSkipped(*engine, StepCacheRule::kFirstBlock).second;
  for (const int at : {used - 1, used, used + left_in - 1, used + left_in, used + left_in + 3}) {
    std::shared_ptr<ForwardHandle> handle;
    absl::Notification sent;
    const auto fresh = MakeKeeping(1 << 20);
    const auto flight = Send(*fresh, call, [&](const ForwardProgress& progress) {
      sent.WaitForNotification();
      if (progress.modules_done == at) handle->Cancel(absl::CancelledError("told so"));
    });
    handle = flight->handle;
    sent.Notify();
    EXPECT_THAT(flight->Wait(), StatusIs(absl::StatusCode::kCancelled, "told so")) << at;
    fresh->Drain(absl::InfiniteDuration());
    EXPECT_EQ(fresh->Residency().devices[0].memory.usage.activations_bytes, 0);
  }
}

}  // namespace
}  // namespace ditserve
