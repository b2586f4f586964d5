// Modulation that is kept: what a timestep alone decides is neither moved nor computed again.
#include <ATen/ops/equal.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <sstream>

#include "server/engine/modulation_cache.h"
#include "server/engine/served_model.h"
#include "tests/server/engine/local_engine_fixture.h"

namespace ditserve {
namespace {

class ModulationTest : public LocalEngineTest {
 protected:
  // Of float32, as the tiny model's passes compute here: 3 blocks of 128.
  static constexpr int64_t kRowBytes = (3 * 2 * 6 - 4 + 2) * 128 * 4;

  ForwardCall At(double timestep, const char* profile = "disk", int64_t side = 64) const {
    ForwardCall call = MakeCall(ProfileNamed(profile), side, side);
    call.inputs.timestep = at::full({1}, timestep, at::kFloat);
    return call;
  }

  // What the call read from the disk, after its output was compared with that of an engine that keeps nothing.
  int64_t Read(Engine& engine, const ForwardCall& call) {
    const auto flight = Send(engine, call);
    EXPECT_THAT(flight->Wait(), IsOk());
    if (!flight->result.ok()) return -1;
    EXPECT_TRUE(at::equal(flight->result->output, Output(*keeps_nothing_, call)));
    return flight->result->account.disk_read_bytes;
  }

  const std::unique_ptr<LocalEngine> keeps_nothing_ = MakeKeeping(0);
};

TEST_F(ModulationTest, PeaksAreRememberedByHowManyTimestepsThereAre) {
  ServedModel served{};
  served.dit = std::make_unique<QwenImageDiT>(TinyConfig());
  ForwardShape one{64, 64, {5}}, many = one;
  many.timesteps = 1000;
  const int64_t of_one = served.ActivationBytes(one, at::kFloat);
  EXPECT_EQ(served.ActivationBytes(many, at::kFloat), served.dit->ActivationPeakBytes(many, at::kFloat));
  EXPECT_GT(served.ActivationBytes(many, at::kFloat), of_one);
}

TEST_F(ModulationTest, WhatMakesThatOfATimestepThatWasSeenIsNotMovedAgain) {
  const auto engine = MakeKeeping(1 << 20);
  const auto [all, modulation] = NeededBytes(*engine);
  EXPECT_EQ(Read(*engine, At(0.5)), all);
  EXPECT_EQ(Read(*engine, At(0.5)), all - modulation);
  EXPECT_EQ(Read(*engine, At(0.5, "disk", 96)), all - modulation) << "whatever the size";
  EXPECT_EQ(Read(*engine, At(0.25)), all) << "another timestep";
  EXPECT_EQ(Read(*engine, At(0.25)), all - modulation);
  EXPECT_EQ(Read(*engine, At(0.5)), all - modulation) << "both are kept";
}

TEST_F(ModulationTest, APlanForAKnownTimestepDoesWithoutWhatMakesIt) {
  const auto engine = MakeKeeping(1 << 20);
  const auto [all, modulation] = NeededBytes(*engine);
  const ForwardCall call = At(0.5);
  PlanCall asked{call.model, ShapeOf(call.inputs), call.profile};
  const absl::StatusOr<ForwardPlan> unknown = engine->Plan(asked);
  asked.known_timestep = true;
  const absl::StatusOr<ForwardPlan> known = engine->Plan(asked);
  ASSERT_THAT(unknown, IsOk());
  ASSERT_THAT(known, IsOk());
  EXPECT_EQ(unknown->first.disk_read_bytes, all);
  EXPECT_EQ(known->first.disk_read_bytes, all - modulation);
  EXPECT_LT(known->window_bytes, unknown->window_bytes);
  EXPECT_LT(known->first.device.total_bytes(), unknown->first.device.total_bytes());
}

TEST_F(ModulationTest, ProfilesThatGiveTheSameValuesShareItAndOthersDoNot) {
  const auto engine = MakeKeeping(1 << 20);
  const auto [all, modulation] = NeededBytes(*engine);
  EXPECT_EQ(Read(*engine, At(0.5)), all);
  EXPECT_EQ(Read(*engine, At(0.5, "disk-fp8-device")), all) << "rounded";
  EXPECT_EQ(Read(*engine, At(0.5, "resident")), all - modulation);
}

TEST_F(ModulationTest, ABatchNeedsThatOfAllItsTimesteps) {
  const auto engine = MakeKeeping(1 << 20);
  const auto [all, modulation] = NeededBytes(*engine);
  ForwardCall both = At(0.5);
  both.inputs.latents = both.inputs.latents.expand({2, -1, -1, -1}).contiguous();
  both.inputs.prompt_emb = both.inputs.prompt_emb.expand({2, -1, -1}).contiguous();
  both.inputs.timestep = at::full({2}, 0.5, at::kFloat);
  both.inputs.timestep[1] = 0.25;
  EXPECT_EQ(Read(*engine, At(0.5)), all);
  EXPECT_EQ(Read(*engine, both), all);
  EXPECT_EQ(Read(*engine, both), all - modulation);
}

TEST_F(ModulationTest, WhatWasAskedForTheLongestAgoGoesForAnother) {
  constexpr int64_t kTwo = 2 * kRowBytes + 1024;
  static_assert(kTwo < 3 * kRowBytes && 3 * kRowBytes < (16 << 12));
  const auto engine = MakeKeeping(kTwo);
  const auto [all, modulation] = NeededBytes(*engine);
  EXPECT_EQ(Read(*engine, At(0.1)), all);
  EXPECT_EQ(Read(*engine, At(0.2)), all);
  EXPECT_EQ(Read(*engine, At(0.1)), all - modulation);
  EXPECT_EQ(Read(*engine, At(0.3)), all) << "in the place of 0.2";
  EXPECT_EQ(Read(*engine, At(0.1)), all - modulation);
  EXPECT_EQ(Read(*engine, At(0.2)), all);
}

TEST_F(ModulationTest, APassThatEndsEarlyLeavesNothingBehind) {
  const auto engine = MakeKeeping(1 << 20);
  const auto [all, modulation] = NeededBytes(*engine);
  std::shared_ptr<ForwardHandle> handle;
  absl::Notification sent;
  const auto flight = Send(*engine, At(0.5), [&](const ForwardProgress& progress) {
    sent.WaitForNotification();
    if (progress.modules_done == 20) handle->Cancel(absl::CancelledError("told so"));
  });
  handle = flight->handle;
  sent.Notify();
  EXPECT_THAT(flight->Wait(), StatusIs(absl::StatusCode::kCancelled, "told so"));
  EXPECT_EQ(Read(*engine, At(0.5)), all) << "what it began to keep is not there";
  EXPECT_EQ(Read(*engine, At(0.5)), all - modulation) << "and is kept by who makes it next";
  engine->Drain(absl::InfiniteDuration());
  EXPECT_EQ(engine->Residency().devices[0].memory.usage.activations_bytes, 0);
}

TEST_F(ModulationTest, RidersOfManyTimestepsInLittleMemoryGetWhatEachGetsAlone) {
  const auto engine = MakeKeeping(3 * kRowBytes + 2048, 10 << 20);
  std::vector<ForwardCall> calls;
  for (int i = 0; i < 24; ++i) calls.push_back(At(0.1 * (i % 5), i % 3 == 0 ? "resident" : "disk", 32 + 16 * (i % 4)));
  std::vector<std::unique_ptr<Flight>> flights;
  for (const ForwardCall& call : calls) flights.push_back(Send(*engine, call));
  for (size_t i = 0; i < calls.size(); ++i) {
    ASSERT_THAT(flights[i]->Wait(), IsOk());
    EXPECT_TRUE(at::equal(flights[i]->result->output, Output(*keeps_nothing_, calls[i]))) << i;
  }
}

TEST_F(ModulationTest, ItsMemoryIsOfTheDevicesBudgetFromTheStart) {
  const auto engine = MakeKeeping(1 << 20);
  const MemoryUsage usage = engine->Residency().devices[0].memory.usage;
  EXPECT_EQ(usage.modulation_bytes, 1 << 20);
  EXPECT_EQ(usage.total_bytes(), 1 << 20);
  EXPECT_THAT(engine->SetBudget(Memory::kDevice, (1 << 20) - 1),
              StatusIs(absl::StatusCode::kFailedPrecondition, "always needs"));
  LocalEngineOptions options;
  options.host_budget_bytes = 64 << 20;
  EXPECT_THAT(LocalEngine::Make(options, {{device_.get(), 1 << 20, 2 << 20}}, &clock_),
              StatusIs(absl::StatusCode::kResourceExhausted, "to keep modulation takes 2097152"));
}

TEST_F(ModulationTest, WhereALoopOf50StepsHasRowsThatAreNotKeptTheLogSaysSoOnceAModel) {
  const auto said = [this](int64_t bytes) {
    std::ostringstream log;
    const auto outer = spdlog::default_logger();
    spdlog::set_default_logger(
        std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
    MakeKeeping(bytes);
    spdlog::set_default_logger(outer);
    return log.str();
  };
  const std::string text = said(7 * kRowBytes);
  const std::string sentence = "cpu: of model tiny modulation of 7 timesteps is kept: a loop of 50 steps";
  EXPECT_NE(text.find(sentence), std::string::npos) << text;
  EXPECT_EQ(text.find("of model"), text.rfind("of model")) << text;
  EXPECT_NE(text.find(std::to_string(50 * kRowBytes) + " bytes"), std::string::npos) << text;
  EXPECT_EQ(said(50 * kRowBytes), "");
  EXPECT_EQ(said(0), "") << "as it was asked for";
}

TEST_F(ModulationTest, WhatIsKeptAndWhatCameOfItIsCounted) {
  const auto engine = MakeKeeping(2 * kRowBytes + 1024);
  const auto told = [&] { return engine->Residency().devices[0].modulation; };
  EXPECT_EQ(told().rows, 0);
  for (const double timestep : {0.1, 0.2, 0.1, 0.3}) Output(*engine, At(timestep));
  const ModulationInfo now = told();
  EXPECT_EQ(now.rows, 2);
  EXPECT_EQ(now.used_bytes, 2 * kRowBytes);
  EXPECT_EQ(now.hits, 1);
  EXPECT_EQ(now.misses, 3);
  EXPECT_EQ(now.evictions, 1);
}

class ModulationCacheTest : public ::testing::Test {
 protected:
  static ModulationKey Key(uint32_t timestep, FormId form = 1) { return {0, {form, 2}, DType::kFloat32, timestep}; }

  const std::unique_ptr<Device> device_ = MakeCpuDevice(CpuBFloat16::kFloat32);
  Ledger ledger_{{0, 1 << 20}};
  const std::unique_ptr<Arena> arena_ = *Arena::Make(device_.get(), Memory::kDevice, 1 << 20);
  const std::unique_ptr<ModulationCache> cache_ = *ModulationCache::Make(device_.get(), arena_.get(), &ledger_, 4096);
};

TEST_F(ModulationCacheTest, ARowIsFoundOnceItIsPublished) {
  const auto row = cache_->Add(Key(1), 2048);
  ASSERT_NE(row, nullptr);
  EXPECT_EQ(cache_->Find(Key(1)), nullptr);
  EXPECT_EQ(cache_->Add(Key(1), 2048), nullptr) << "somebody makes it";
  cache_->Publish(row);
  EXPECT_EQ(cache_->Find(Key(1)), row);
  EXPECT_EQ(cache_->Find(Key(1, 9)), nullptr) << "of other values";
}

TEST_F(ModulationCacheTest, WhatIsHeldOrMadeStays) {
  auto held = cache_->Add(Key(1), 2048);
  const auto made = cache_->Add(Key(2), 2048);
  cache_->Publish(held);
  EXPECT_EQ(cache_->Add(Key(3), 2048), nullptr);
  held.reset();
  EXPECT_NE(cache_->Add(Key(3), 2048), nullptr);
  EXPECT_EQ(cache_->Find(Key(1)), nullptr);
}

TEST_F(ModulationCacheTest, NothingGoesForARowThatNeverFits) {
  auto row = cache_->Add(Key(1), 4096);
  cache_->Publish(row);
  row.reset();
  EXPECT_EQ(cache_->Add(Key(2), 8192), nullptr);
  EXPECT_NE(cache_->Find(Key(1)), nullptr);
}

// As where rows in float32 and in bfloat16 lie side by side.
TEST_F(ModulationCacheTest, NothingGoesForARowThatHasNoRoomBesideThoseThatAreHeld) {
  std::vector<ModulationCache::RowPtr> rows;
  for (uint32_t i = 0; i < 4; ++i) {
    rows.push_back(cache_->Add(Key(i), 1024));
    cache_->Publish(rows.back());
  }
  auto held = rows[1];
  rows.clear();
  EXPECT_EQ(cache_->Add(Key(9), 3072), nullptr);
  EXPECT_EQ(cache_->Info().rows, 4);
  EXPECT_EQ(cache_->Info().evictions, 0);
  EXPECT_NE(cache_->Add(Key(10), 2048), nullptr);
  EXPECT_EQ(cache_->Info().used_bytes, 3072) << "the two behind went, and the one before, which is older";
  held.reset();
}

TEST_F(ModulationCacheTest, WhatIsAbandonedIsFree) {
  auto row = cache_->Add(Key(1), 4096);
  cache_->Abandon(row);
  EXPECT_EQ(cache_->Find(Key(1)), nullptr);
  EXPECT_NE(cache_->Add(Key(2), 4096), nullptr);
}

}  // namespace
}  // namespace ditserve
