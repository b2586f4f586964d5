// One engine on two devices.
#include <ATen/ops/equal.h>
#include <ATen/ops/from_blob.h>
#include <sys/mman.h>

#include "core/base/error_details.h"
#include "tests/server/engine/local_engine_fixture.h"
#include "tests/testing/fake_clock.h"

namespace ditserve {
namespace {

class LocalEngineDevicesTest : public LocalEngineTest {
 protected:
  static constexpr int64_t kBudget = 64 << 20;
  static constexpr int64_t kTooSmall = 1 << 10;

  LocalEngineDevicesTest() {
    first_.apart = second_.apart = true;
    // What others take is none of their runtimes'.
    first_.told_memory = second_.told_memory = {int64_t{1} << 34, int64_t{1} << 34};
  }

  std::unique_ptr<LocalEngine> MakeEngine(int64_t of_first = kBudget, int64_t of_second = kBudget,
                                          const Clock* clock = nullptr) {
    LocalEngineOptions options;
    options.host_budget_bytes = kBudget;
    options.transfer_threads = 2;
    options.on_device_lost = [this](const absl::Status& why) {
      why_ = why;
      lost_.Notify();  // Once.
    };
    auto engine =
        LocalEngine::Make(options, {{&first_, kBudget}, {&second_, kBudget}}, clock == nullptr ? &clock_ : clock);
    EXPECT_THAT(engine, IsOk());
    // Warming up takes more than some.
    EXPECT_THAT((*engine)->SetBudget(DeviceMemory(0), of_first), IsOk());
    EXPECT_THAT((*engine)->SetBudget(DeviceMemory(1), of_second), IsOk());
    EXPECT_THAT((*engine)->LoadModel({"tiny", folder_ / "model"}), IsOk());
    return *std::move(engine);
  }
  static std::string DeviceOf(Flight& flight) {
    EXPECT_THAT(flight.Wait(), IsOk());
    return flight.result.ok() ? flight.result->account.device : "";
  }

  WatchedDevice first_, second_{DeviceMemory(1), "cpu:0"};
  absl::Notification lost_;
  absl::Status why_;
};

TEST_F(LocalEngineDevicesTest, OfTwoRequestsAtOnceEachHasADeviceAndGetsWhatItGetsAlone) {
  for (const char* name : {"disk", "host-offload", "fp8-host"}) {
    const auto engine = MakeEngine();  // It has measured nothing.
    const ForwardCall call = MakeCall(ProfileNamed(name));
    const at::Tensor expected = Output(*LocalEngineTest::MakeEngine(), call);
    absl::Notification both;
    const auto one = Send(*engine, call, [&](const ForwardProgress&) { both.WaitForNotification(); });
    const auto other = Send(*engine, call);
    both.Notify();
    EXPECT_NE(DeviceOf(*one), DeviceOf(*other)) << name;
    EXPECT_TRUE(at::equal(one->result->output, expected)) << name;
    EXPECT_TRUE(at::equal(other->result->output, expected)) << name;
  }
}

TEST_F(LocalEngineDevicesTest, WhatFitsOneDeviceAloneGoesThereHoweverManyAreThere) {
  const auto engine = MakeEngine(kTooSmall, kBudget);
  std::vector<std::unique_ptr<Flight>> flights;
  for (int i = 0; i < 4; ++i) flights.push_back(Send(*engine, MakeCall(ProfileNamed("disk"))));
  for (const auto& flight : flights) EXPECT_EQ(DeviceOf(*flight), "cpu:0");
}

TEST_F(LocalEngineDevicesTest, OnlyWhatFitsNoDeviceIsRefusedAndToldByTheOneThatIsShortOfLeast) {
  const auto engine = MakeEngine(kTooSmall, 2 * kTooSmall);
  const absl::Status refused = Send(*engine, MakeCall(ProfileNamed("disk")))->Wait().status();
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kFailedPrecondition, "the device budget is 2048 bytes"));
  EXPECT_EQ(ShortageOf(refused)->memory, DeviceMemory(1));
}

TEST_F(LocalEngineDevicesTest, AProfileThatNamesADeviceIsComputedThereAndRefusedThere) {
  Profile profile = ProfileNamed("disk");
  profile.device = "cpu:0";
  const auto engine = MakeEngine();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(DeviceOf(*Send(*engine, MakeCall(profile))), "cpu:0");
  EXPECT_THAT(engine->SetBudget(DeviceMemory(1), kTooSmall), IsOk());
  EXPECT_THAT(Send(*engine, MakeCall(profile))->Wait(), StatusIs(absl::StatusCode::kFailedPrecondition, "1024 bytes"));
  EXPECT_EQ(DeviceOf(*Send(*engine, MakeCall(ProfileNamed("disk")))), "cpu");
  profile.device = "cuda:7";
  EXPECT_THAT(Send(*engine, MakeCall(profile))->Wait(), StatusIs(absl::StatusCode::kInvalidArgument, "cuda:7"));
}

// They may be gone: what is told ends the call, of which the executor does not know yet.
TEST_F(LocalEngineDevicesTest, OfWhoWasToldThatADeviceIsLostNobodyReadsTheInputs) {
  const auto engine = MakeEngine();
  Profile profile = ProfileNamed("disk");
  profile.device = "cpu";
  absl::Notification stands, go_on;
  const auto standing = Send(*engine, MakeCall(profile), [&](const ForwardProgress&) {
    if (!stands.HasBeenNotified()) stands.Notify();
    go_on.WaitForNotification();
  });
  stands.WaitForNotification();
  ForwardCall call = MakeCall(profile);
  const size_t bytes = call.inputs.latents.nbytes();
  void* const page = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  call.inputs.latents = at::from_blob(page, call.inputs.latents.sizes(), call.inputs.latents.options());
  const auto waiting = Send(*engine, call);
  second_.Lose(absl::UnavailableError("cpu:0 is lost"));
  EXPECT_THAT(waiting->Wait(), StatusIs(absl::StatusCode::kUnavailable, "cpu:0 is lost"));
  ASSERT_EQ(mprotect(page, bytes, PROT_NONE), 0);  // Who reads it ends the test.
  go_on.Notify();
  EXPECT_THAT(standing->Wait(), StatusIs(absl::StatusCode::kUnavailable, "cpu:0 is lost"));
  engine->Drain(absl::InfiniteDuration());
  EXPECT_EQ(munmap(page, bytes), 0);
}

TEST_F(LocalEngineDevicesTest, APlanIsOfTheDeviceThatWouldComputeIt) {
  const auto engine = MakeEngine(kTooSmall, kBudget);
  PlanCall call;
  call.model = "tiny";
  call.shape = {64, 64, {5}};
  call.profile = ProfileNamed("disk");
  const absl::StatusOr<ForwardPlan> plan = engine->Plan(call);
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->device, "cpu:0");
  EXPECT_THAT(plan->refusal, IsOk());
  EXPECT_EQ(plan->first.device.wanted_bytes, kBudget);
}

TEST_F(LocalEngineDevicesTest, APlanOffersNoProfileOfAnotherDevice) {
  const auto engine = MakeEngine();
  PlanCall call;
  call.model = "tiny";
  call.shape = {64, 64, {5}};
  call.profile = ProfileNamed("disk");
  call.profile.device = "cpu";
  call.others = {ProfileNamed("resident")};
  const auto is_offered = [&] {
    const std::vector<PlanOffer> offers = engine->Plan(call)->offers;
    return std::any_of(offers.begin(), offers.end(),
                       [](const PlanOffer& offer) { return offer.profile == "resident"; });
  };
  EXPECT_TRUE(is_offered());
  call.others[0].device = "cpu:0";
  EXPECT_FALSE(is_offered());
}

TEST_F(LocalEngineDevicesTest, EachDeviceHasABudgetOfItsOwnAndTheHostOne) {
  const auto engine = MakeEngine();
  EXPECT_THAT(engine->SetBudget(DeviceMemory(1), kBudget / 2), IsOk());
  const ResidencySnapshot now = engine->Residency();
  ASSERT_EQ(now.devices.size(), 2u);
  EXPECT_EQ(now.devices[0].name, "cpu");
  EXPECT_EQ(now.devices[0].memory.usage.wanted_bytes, kBudget);
  EXPECT_EQ(now.devices[1].name, "cpu:0");
  EXPECT_EQ(now.devices[1].memory.usage.wanted_bytes, kBudget / 2);
  EXPECT_EQ(now.host.usage.wanted_bytes, kBudget);
}

TEST_F(LocalEngineDevicesTest, OneLostDeviceEndsTheCallsOfAll) {
  const auto engine = MakeEngine();
  const absl::Status why = absl::UnavailableError("cpu:0 is lost: it fell from the bus");
  const auto call = [&](const char* device) {
    Profile profile = ProfileNamed("disk");
    profile.device = device;
    return MakeCall(profile);
  };
  const auto hold = [&](const ForwardProgress& progress) {
    if (progress.modules_done == 3) lost_.WaitForNotification();
  };
  const auto there = Send(*engine, call("cpu:0"), hold), elsewhere = Send(*engine, call("cpu"), hold);
  second_.Lose(why);
  EXPECT_EQ(there->Wait().status(), why);
  EXPECT_EQ(elsewhere->Wait().status(), why);
  EXPECT_EQ(Send(*engine, call("cpu"))->Wait().status(), why);
  EXPECT_EQ(why_, why);
}

TEST_F(LocalEngineDevicesTest, OneThatHangsEndsTheCallsOfAll) {
  MovedClock clock;
  const auto engine = MakeEngine(kBudget, kBudget, &clock);
  Profile profile = ProfileNamed("disk");
  profile.device = "cpu:0";
  second_.hangs = true;
  const auto hanging = Send(*engine, MakeCall(profile));
  clock.PassAtEachLook(absl::Milliseconds(300));
  EXPECT_THAT(hanging->Wait(), StatusIs(absl::StatusCode::kUnavailable, "cpu:0 is lost: it has not got on for"));
  lost_.WaitForNotification();
  EXPECT_EQ(engine->Loss(), why_);
  EXPECT_EQ(Send(*engine, MakeCall(ProfileNamed("disk")))->Wait().status(), why_);
  second_.hung->LetGo();  // So that the engine can be destroyed.
}

TEST_F(LocalEngineDevicesTest, DevicesAreNumberedAndOneThatComputesInHostMemoryIsAlone) {
  const auto make = [&](const std::vector<BudgetedDevice>& devices) {
    return LocalEngine::Make({kBudget}, devices, &clock_).status();
  };
  constexpr auto kWrong = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(make({}), StatusIs(kWrong, "needs a device"));
  EXPECT_THAT(make({{&second_, kBudget}, {&first_, kBudget}}), StatusIs(kWrong, "cpu:0 is not number 0"));
  second_.apart = false;
  EXPECT_THAT(make({{&first_, kBudget}, {&second_, kBudget}}), StatusIs(kWrong, "computes alone"));
}

}  // namespace
}  // namespace ditserve
