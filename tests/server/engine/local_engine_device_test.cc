// The engine on a device whose memory is not the host's, and that can be lost.
#include <ATen/ops/equal.h>

#include <atomic>

#include "core/residency/transfers/transfer_engine.h"
#include "tests/server/engine/local_engine_fixture.h"
#include "tests/testing/fake_clock.h"

namespace ditserve {
namespace {

class LocalEngineDeviceTest : public LocalEngineTest {
 protected:
  LocalEngineDeviceTest() {
    device_->apart = true;
    // What others take is none of its runtime's. (Of addresses an arena reserves 16 times as many, and ThreadSanitizer
    // leaves no TiB of them in one piece.)
    device_->told_memory = {int64_t{1} << 34, int64_t{1} << 34};
  }
};

TEST_F(LocalEngineDeviceTest, GivesWhatTheCpuGives) {
  for (const char* name : {"resident", "host-offload", "fp8-host", "disk"}) {
    const ForwardCall call = MakeCall(ProfileNamed(name));
    device_->apart = false;
    const at::Tensor expected = Output(*MakeEngine(), call);
    device_->apart = true;
    const auto engine = MakeEngine();
    EXPECT_TRUE(at::equal(Output(*engine, call), expected)) << name;
    EXPECT_EQ(engine->Residency().devices[0].memory.usage.activations_bytes, 0);
  }
}

TEST_F(LocalEngineDeviceTest, TheHostBudgetIsNeverLessThanItsSlots) {
  const auto engine = MakeEngine();
  const int64_t slots = engine->Residency().host.usage.staging_bytes;
  EXPECT_GT(slots, TransferEngine::StagingBytes(1, 2)) << "those of inputs and outputs are there too";
  EXPECT_THAT(engine->SetBudget(Memory::kHost, slots - 1),
              StatusIs(absl::StatusCode::kFailedPrecondition, "always needs"));
  EXPECT_THAT(engine->SetBudget(Memory::kHost, slots), IsOk());
}

TEST_F(LocalEngineDeviceTest, ALostDeviceEndsEveryCallAndIsToldOnce) {
  const absl::Status why = absl::UnavailableError("fake:0 is lost: it fell from the bus");
  MovedClock clock;
  absl::Notification lost;
  std::atomic<int> told = 0;
  LocalEngineOptions options;
  options.host_budget_bytes = 64 << 20;
  options.on_device_lost = [&](const absl::Status& status) {
    EXPECT_EQ(status, why);
    if (++told > 1) return;
    clock.Advance(absl::Minutes(1));  // A watcher that goes on has hundreds of looks to make up for, before it may end.
    lost.Notify();
  };
  {
    const auto engine = LocalEngine::Make(options, {{device_.get(), 64 << 20}}, &clock);
    ASSERT_THAT(engine, IsOk());
    ASSERT_THAT((*engine)->LoadModel({"tiny", folder_ / "model"}), IsOk());
    const auto under_way = Send(**engine, MakeCall(ProfileNamed("disk")), [&](const ForwardProgress& progress) {
      if (progress.modules_done != 3) return;
      device_->Lose(why);
      lost.WaitForNotification();
    });
    const auto waiting = Send(**engine, MakeCall(ProfileNamed("disk")));
    EXPECT_EQ(under_way->Wait().status(), why);
    EXPECT_EQ(waiting->Wait().status(), why);
    EXPECT_EQ(Send(**engine, MakeCall(ProfileNamed("disk")))->Wait().status(), why);
  }
  EXPECT_EQ(told, 1);
}

TEST_F(LocalEngineDeviceTest, ADeviceThatHangsIsLostOnceItsDeadlineIsPast) {
  MovedClock clock;
  std::atomic<int> told = 0;
  absl::Notification lost;
  LocalEngineOptions options;
  options.host_budget_bytes = 64 << 20;
  options.on_device_lost = [&](const absl::Status&) {
    if (++told == 1) lost.Notify();
  };
  const auto engine = LocalEngine::Make(options, {{device_.get(), 64 << 20}}, &clock);
  ASSERT_THAT(engine, IsOk());
  ASSERT_THAT((*engine)->LoadModel({"tiny", folder_ / "model"}), IsOk());
  EXPECT_THAT(Send(**engine, MakeCall(ProfileNamed("disk")))->Wait(), IsOk());
  device_->hangs = true;
  const auto hanging = Send(**engine, MakeCall(ProfileNamed("disk")));
  clock.PassAtEachLook(absl::Milliseconds(300));
  EXPECT_THAT(hanging->Wait(), StatusIs(absl::StatusCode::kUnavailable, "is lost: it has not got on for"));
  lost.WaitForNotification();
  EXPECT_EQ((*engine)->Loss(), hanging->result.status());
  EXPECT_EQ(Send(**engine, MakeCall(ProfileNamed("disk")))->Wait().status(), (*engine)->Loss());
  EXPECT_EQ(told, 1);
  device_->hung->LetGo();  // So that the engine can be destroyed.
}

TEST_F(LocalEngineDeviceTest, ADeviceThatDoesNotAnswerIsLostWithoutBeingAsked) {
  MovedClock clock;
  absl::Notification lost;
  LocalEngineOptions options;
  options.host_budget_bytes = 64 << 20;
  options.on_device_lost = [&](const absl::Status&) { lost.Notify(); };
  const auto engine = LocalEngine::Make(options, {{device_.get(), 64 << 20}}, &clock);
  ASSERT_THAT(engine, IsOk());
  ASSERT_THAT((*engine)->LoadModel({"tiny", folder_ / "model"}), IsOk());
  device_->is_silent = true;
  clock.PassAtEachLook(absl::Seconds(1));
  lost.WaitForNotification();
  EXPECT_THAT((*engine)->Loss(), StatusIs(absl::StatusCode::kUnavailable, "cpu is lost: it has not answered for 11s"));
  EXPECT_EQ(Send(**engine, MakeCall(ProfileNamed("disk")))->Wait().status(), (*engine)->Loss());
  device_->answers.Notify();  // So that the engine can be destroyed.
}

TEST_F(LocalEngineDeviceTest, AnErrorOfALostDeviceIsThatItIsLost) {
  const absl::Status why = absl::UnavailableError("fake:0 is lost: it fell from the bus");
  const auto engine = MakeEngine();
  device_->fails = absl::InternalError("an illegal memory access");
  EXPECT_EQ(Send(*engine, MakeCall(ProfileNamed("disk")))->Wait().status(), device_->fails);
  device_->Lose(why);
  EXPECT_EQ(Send(*engine, MakeCall(ProfileNamed("disk")))->Wait().status(), why);
}

}  // namespace
}  // namespace ditserve
