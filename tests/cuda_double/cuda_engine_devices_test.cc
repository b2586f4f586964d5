// One engine on two CUDA devices of the double.
#include <ATen/ops/equal.h>

#include <array>
#include <cstdio>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "tests/cuda_double/engine_on_cuda.h"

namespace ditserve {
namespace {

constexpr int64_t kMiB = 1 << 20;

class CudaEngineTwoDevicesTest : public CudaEngineTest {
 protected:
  std::unique_ptr<LocalEngine> MakeEngine(int64_t of_first = 88 * kMiB, int64_t of_second = 88 * kMiB) {
    LocalEngineOptions options;
    options.host_budget_bytes = 512 * kMiB;
    options.threads = 1;
    options.transfer_threads = 2;
    auto engine = LocalEngine::Make(options, {{first_.get(), of_first}, {second_.get(), of_second}}, &clock_);
    EXPECT_THAT(engine, IsOk());
    EXPECT_THAT((*engine)->LoadModel({"tiny", folder_ / "model"}), IsOk());
    return *std::move(engine);
  }
  // Computed on that device alone.
  static ForwardCall On(const std::string& device, ForwardCall call) {
    call.profile.device = device;
    return call;
  }

  std::unique_ptr<Device> first_ = MakeGpu(0), second_ = MakeGpu(1, DeviceMemory(1));
};

TEST_F(CudaEngineTwoDevicesTest, RidersOnBothAtOnceGetWhatEachGetsAlone) {
  std::map<std::string, int> riders;
  for (uint32_t seed = 1; seed <= 8; ++seed) {
    first_.reset();
    second_.reset();
    End();
    Begin(seed);
    first_ = MakeGpu(0);
    second_ = MakeGpu(1, DeviceMemory(1));
    const auto engine = MakeEngine(72 * kMiB, 120 * kMiB);
    std::vector<ForwardCall> calls;
    std::vector<at::Tensor> expected;
    for (int i = 0; i < 8; ++i) {
      const Profile& profile = profiles_[(static_cast<size_t>(i) + seed) % profiles_.size()];
      calls.push_back(MakeCall(profile, 32 + 16 * (i % 3), 32 + 16 * (i % 2), 1 + i % 3));
      expected.push_back(Expected(calls.back()));
    }
    std::vector<std::unique_ptr<Flight>> flights;
    for (const ForwardCall& call : calls) flights.push_back(Send(*engine, call));
    for (size_t i = 0; i < flights.size(); ++i) {
      ASSERT_THAT(flights[i]->Wait(), IsOk()) << seed;
      EXPECT_TRUE(at::equal(flights[i]->result->output, expected[i])) << seed << ", rider " << i;
      ++riders[flights[i]->result->account.device];
    }
  }
  std::printf("riders: %d on cuda:0, %d on cuda:1\n", riders["cuda:0"], riders["cuda:1"]);
  EXPECT_GT(riders["cuda:0"], 0);
  EXPECT_GT(riders["cuda:1"], 0);
}

TEST_F(CudaEngineTwoDevicesTest, OfTwoAtOnceEachHasADevice) {
  const ForwardCall call = MakeCall(ProfileNamed("disk"));
  const at::Tensor expected = Expected(call);
  for (int i = 0; i < 3; ++i) {
    const auto engine = MakeEngine();  // It has measured nothing.
    absl::Notification both;
    const auto one = Send(*engine, call, [&](const ForwardProgress&) { both.WaitForNotification(); });
    const auto other = Send(*engine, call);
    both.Notify();
    ASSERT_THAT(one->Wait(), IsOk());
    ASSERT_THAT(other->Wait(), IsOk());
    EXPECT_NE(one->result->account.device, other->result->account.device) << i;
    EXPECT_TRUE(at::equal(one->result->output, expected));
    EXPECT_TRUE(at::equal(other->result->output, expected));
  }
}

TEST_F(CudaEngineTwoDevicesTest, WhatFitsTheLargerDeviceAloneGoesThereAndBudgetsAreApart) {
  const auto engine = MakeEngine();
  const int64_t small = engine->Residency().devices[0].memory.usage.total_bytes() + kMiB;
  const std::string told = absl::StrCat("the device budget is ", small);
  EXPECT_THAT(engine->SetBudget(DeviceMemory(0), small), IsOk());
  const ForwardCall large = MakeCall(ProfileNamed("disk"), 256, 256);
  for (int i = 0; i < 2; ++i) {
    const auto flight = Send(*engine, large);
    ASSERT_THAT(flight->Wait(), IsOk());
    EXPECT_EQ(flight->result->account.device, "cuda:1");
  }
  EXPECT_THAT(Send(*engine, On("cuda:0", large))->Wait(), StatusIs(absl::StatusCode::kFailedPrecondition, told));
  EXPECT_THAT(engine->SetBudget(DeviceMemory(1), small), IsOk());
  EXPECT_THAT(Send(*engine, large)->Wait(), StatusIs(absl::StatusCode::kFailedPrecondition, told));
  EXPECT_THAT(engine->SetBudget(DeviceMemory(0), 88 * kMiB), IsOk());
  const auto flight = Send(*engine, large);
  ASSERT_THAT(flight->Wait(), IsOk());
  EXPECT_EQ(flight->result->account.device, "cuda:0");
  const ResidencySnapshot now = engine->Residency();
  EXPECT_LE(now.devices[0].memory.usage.peak_bytes, 88 * kMiB);
  EXPECT_LE(now.devices[1].memory.usage.peak_bytes, 88 * kMiB);
}

TEST_F(CudaEngineTwoDevicesTest, WhatBothReadAtOnceIsPaidOnce) {
  const auto engine = MakeEngine();
  const ForwardCall call = MakeCall(ProfileNamed("disk"));
  const auto disk_bytes = [&] { return engine->Residency().transfers[0].bytes; };
  Output(*engine, On("cuda:0", call));
  const int64_t of_one = disk_bytes();
  absl::Mutex mutex;
  std::array<int, 2> done = {0, 0};
  const auto in_step = [&](size_t device) {
    return [&, device](const ForwardProgress& progress) {
      const absl::MutexLock lock(&mutex);
      done[device] = progress.modules_done;
      const auto together = [&] { return done[1 - device] >= progress.modules_done; };
      mutex.Await(absl::Condition(&together));
    };
  };
  const auto one = Send(*engine, On("cuda:0", call), in_step(0));
  const auto other = Send(*engine, On("cuda:1", call), in_step(1));
  ASSERT_THAT(one->Wait(), IsOk());
  ASSERT_THAT(other->Wait(), IsOk());
  EXPECT_TRUE(at::equal(one->result->output, Expected(call)));
  EXPECT_TRUE(at::equal(other->result->output, Expected(call)));
  const double times = static_cast<double>(disk_bytes() - of_one) / static_cast<double>(of_one);
  std::printf("both read %.2f times what one reads\n", times);
  EXPECT_LT(times, 1.5);
  EXPECT_EQ(one->result->account.disk_read_bytes + other->result->account.disk_read_bytes, disk_bytes() - of_one);
}

// Is not done with a copy before it is let go.
class StandingCopies final : public ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;

  void LetGo() { goes_.Notify(); }

  absl::StatusOr<EventPtr> Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) override {
    Events events;
    for (const EventPtr& event : after) events.push_back(Unwrapped(event));
    absl::StatusOr<EventPtr> event = ForwardingDevice::Enqueue(conversion, events);
    if (event.ok() && *event != nullptr) event = std::make_shared<Copied>(*std::move(event), goes_);
    return event;
  }
  absl::Status ComputeAfter(const EventPtr& event) override { return ForwardingDevice::ComputeAfter(Unwrapped(event)); }

 private:
  class Copied final : public Event {
   public:
    Copied(EventPtr of, absl::Notification& goes) : event(std::move(of)), goes_(goes) {}
    bool Done() override { return goes_.HasBeenNotified() && event->Done(); }
    absl::Status Wait() override {
      goes_.WaitForNotification();
      return event->Wait();
    }

    const EventPtr event;

   private:
    absl::Notification& goes_;
  };

  static EventPtr Unwrapped(const EventPtr& event) {
    const auto* const copied = dynamic_cast<const Copied*>(event.get());
    return copied == nullptr ? event : copied->event;
  }

  absl::Notification goes_;
};

TEST_F(CudaEngineTwoDevicesTest, WhatOneIsNeverDoneWithHoldsUpNoPassOnTheOther) {
  auto stands = std::make_unique<StandingCopies>(std::move(first_));
  StandingCopies& standing = *stands;
  first_ = std::move(stands);
  const auto engine = MakeEngine();
  const ForwardCall call = MakeCall(ProfileNamed("disk"));
  const auto first = Send(*engine, On("cuda:0", call)), too = Send(*engine, On("cuda:0", call));
  for (const Profile& profile : profiles_) {
    const ForwardCall there = MakeCall(profile);
    EXPECT_TRUE(at::equal(Output(*engine, On("cuda:1", there)), Expected(there))) << profile.name;
  }
  standing.LetGo();
  for (const auto& flight : {first.get(), too.get()}) {
    ASSERT_THAT(flight->Wait(), IsOk());
    EXPECT_TRUE(at::equal(flight->result->output, Expected(call)));
  }
}

}  // namespace
}  // namespace ditserve
