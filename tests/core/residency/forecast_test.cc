// What laps are forecast to take, against the same laps decided one event at a time.
#include "core/residency/forecast.h"

#include <gmock/gmock.h>

#include <limits>

#include "tests/core/residency/policy/policy_fixture.h"

namespace ditserve {
namespace {

class ForecastTest : public PolicyTest {
 protected:
  // Of riders that take what Request says; a byte takes a second from the checkpoint, half of it from a copy.
  ForecastRequest Of(Policy::JoinRequest ride, int riders = 1, int64_t seconds_a_module = 0) const {
    ForecastRequest request;
    request.riders = riders;
    request.computing.assign(modules_.size(), absl::Seconds(seconds_a_module));
    for (const int64_t bytes : modules_) request.form_bytes.push_back({bytes});
    request.disk_bytes_per_second = 1;
    request.copy_bytes_per_second = 2;
    request.ride = std::move(ride);
    return request;
  }
  Policy::JoinRequest Kept(int64_t activations = 5) const { return Request(activations, {{Tier::kDevice, 0}}); }

  absl::StatusOr<Forecast> Tell(const ForecastRequest& request) const {
    Policy trial(*policy_, [](FormId from, FormId to) { return from == 0 || from == to; });
    absl::StatusOr<Forecast> forecast = ForecastLaps(trial, request, now_);
    EXPECT_TRUE(trial.Check().ok()) << trial.Check().message();
    return forecast;
  }
};

TEST_F(ForecastTest, WhatFitsIsReadOnceAndStays) {
  Make({10, 20, 30}, 100);
  const auto forecast = Tell(Of(Kept()));
  ASSERT_TRUE(forecast.ok()) << forecast.status();
  EXPECT_EQ(forecast->first.disk_read_bytes, 60);
  EXPECT_EQ(forecast->first.device_copy_bytes, 60);
  EXPECT_EQ(forecast->repeated.disk_read_bytes, 0);
  EXPECT_EQ(forecast->repeated.device_copy_bytes, 0);
  EXPECT_EQ(forecast->repeated.device.weights_bytes, 60);
  EXPECT_EQ(forecast->repeated.device.activations_bytes, 5);
  EXPECT_EQ(forecast->repeated.device.total_bytes(), 65);
  EXPECT_EQ(forecast->repeated.device.wanted_bytes, 100);
}

TEST_F(ForecastTest, WhatStreamsIsReadEachTimeWithinItsWindow) {
  Make(std::vector<int64_t>(20, 10), 100);
  const auto forecast = Tell(Of(Request(5), 1, 10));
  ASSERT_TRUE(forecast.ok()) << forecast.status();
  EXPECT_EQ(forecast->first.disk_read_bytes, 200);
  EXPECT_EQ(forecast->repeated.disk_read_bytes, 200);
  EXPECT_EQ(forecast->repeated.device.total_bytes(), 5 + Sweeps::kAheadModules * 10);
}

TEST_F(ForecastTest, ReadingOverlapsComputing) {
  Make(std::vector<int64_t>(10, 10), 1000);
  const auto reading = Tell(Of(Request(5), 1, 4));
  ASSERT_TRUE(reading.ok()) << reading.status();
  EXPECT_EQ(reading->first.time, absl::Seconds(10 * 10 + 4)) << "all is read, and the last module computed";
  EXPECT_EQ(reading->first.computing, absl::Seconds(10 * 4));
  const auto computing = Tell(Of(Request(5), 1, 40));
  ASSERT_TRUE(computing.ok()) << computing.status();
  EXPECT_EQ(computing->first.time, absl::Seconds(10 + 10 * 40)) << "the first module is read, and all are computed";
}

TEST_F(ForecastTest, WorkWithLoadsTakesTheirProcessorsTime) {
  Make(std::vector<int64_t>(10, 10), 1000);
  ForecastRequest request = Of(Kept(), 1, 1);
  request.work = [](const StartLoad& load) { return 4 * absl::Seconds(load.targets.front()->grown_bytes); };
  request.load_processors = 2;
  const auto kept = Tell(request);
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(kept->first.time, absl::Seconds(100 + 200 + 1));
  EXPECT_EQ(kept->first.computing, absl::Seconds(10)) << "which has others";
  EXPECT_EQ(kept->repeated.time, absl::Seconds(10));
  request.ride = Request(5);
  const auto streamed = Tell(request);
  ASSERT_TRUE(streamed.ok()) << streamed.status();
  EXPECT_LT(streamed->first.time, absl::Seconds(100 + 200)) << "what passes is written where others were";
  EXPECT_EQ(streamed->repeated.time, absl::Seconds(100 + 1));
}

// Of a load's 10 s, 6 processor seconds are 0.3 of the two that compute.
TEST_F(ForecastTest, WorkThatNobodyWaitsForHoldsComputingUp) {
  Make(std::vector<int64_t>(10, 10), 1000);
  const auto tell = [&](int64_t seconds_a_module) {
    ForecastRequest request = Of(Request(5), 1, seconds_a_module);
    request.disk_bytes_per_second = 10 / 7.0;
    request.work = [](const StartLoad&) { return absl::Seconds(6); };
    request.load_processors = request.computing_processors = 2;
    return Tell(request);
  };
  const auto computing = tell(40);
  ASSERT_TRUE(computing.ok()) << computing.status();
  EXPECT_EQ(computing->first.computing, absl::Seconds(10 * 40 + 9 * 6 / 2)) << "all but the first load's";
  EXPECT_EQ(computing->first.time, absl::Seconds(10) + computing->first.computing);
  const auto moving = tell(7);
  ASSERT_TRUE(moving.ok()) << moving.status();
  EXPECT_EQ(moving->first.computing, absl::Seconds(9 * 10 + 7));
  EXPECT_EQ(moving->first.time, absl::Seconds(10 * 10 + 7)) << "it is through when the next one has come";
  const auto waiting = tell(2);
  ASSERT_TRUE(waiting.ok()) << waiting.status();
  EXPECT_EQ(waiting->first.time, absl::Seconds(10 * 10 + 2)) << "what is done while it waits is free";
}

TEST_F(ForecastTest, NoProcessorDoesTwoThingsAtATime) {
  Make(std::vector<int64_t>(10, 10), 1000);
  ForecastRequest request = Of(Kept(), 1, 10);
  request.disk_bytes_per_second = std::numeric_limits<double>::infinity();
  request.work = [](const StartLoad&) { return absl::Seconds(8); };
  request.load_processors = request.computing_processors = 2;
  const auto kept = Tell(request);
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(kept->first.time, absl::Seconds(10 * 10 + 10 * 8 / 2));
  EXPECT_EQ(kept->repeated.time, absl::Seconds(10 * 10));
}

TEST_F(ForecastTest, RidersShareWhatIsReadAndTakeTurnsComputing) {
  Make(std::vector<int64_t>(20, 10), 200);
  const auto forecast = Tell(Of(Request(5), 4, 10));
  ASSERT_TRUE(forecast.ok()) << forecast.status();
  EXPECT_EQ(forecast->first.disk_read_bytes, 200);
  EXPECT_EQ(forecast->first.most_riders, 4);
  EXPECT_EQ(forecast->first.computing, absl::Seconds(4 * 20 * 10));
  EXPECT_EQ(forecast->first.device.activations_bytes, 4 * 5);
}

TEST_F(ForecastTest, WhoDoesNotFitBesideTheOthersWaits) {
  Make({10, 10}, 100);
  const auto forecast = Tell(Of(Request(40), 3, 1));
  ASSERT_TRUE(forecast.ok()) << forecast.status();
  EXPECT_EQ(forecast->first.most_riders, 2);
  EXPECT_EQ(forecast->first.computing, absl::Seconds(3 * 2));
}

TEST_F(ForecastTest, BeginsFromWhatIsThere) {
  Make({10, 20, 30}, 100);
  PolicyRider& rider = Join(Kept());
  Lap(rider);
  const auto forecast = Tell(Of(Kept()));
  ASSERT_TRUE(forecast.ok()) << forecast.status();
  EXPECT_EQ(forecast->first.disk_read_bytes, 0);
}

TEST_F(ForecastTest, ChangesNothing) {
  Make({10, 20, 30}, 45);
  PolicyRider& rider = Join(Kept());
  Release(rider, Get(rider));
  const int64_t copies = policy_->budget(Memory::kDevice).copy_bytes;
  const absl::Duration tick = policy_->NextTick();
  actions_.clear();
  ASSERT_TRUE(Tell(Of(Kept(), 2, 1)).ok());
  EXPECT_EQ(policy_->budget(Memory::kDevice).copy_bytes, copies);
  EXPECT_EQ(policy_->sweeps().riders().size(), 1u);
  EXPECT_EQ(policy_->NextTick(), tick);
  EXPECT_TRUE(actions_.empty());
}

TEST_F(ForecastTest, WhatNeverFitsIsRefusedAsItWouldBe) {
  Make({10, 10}, 100);
  const absl::Status refused = policy_->Join(Request(91), now_, actions_).status();
  EXPECT_EQ(Tell(Of(Request(91))).status(), refused);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(ForecastTest, WhoOtherProcessesLeaveNoRoomForIsNotComputedNow) {
  Make({10, 10}, 100);
  policy_->SetPressure(Memory::kDevice, 20, now_, actions_);
  EXPECT_EQ(Tell(Of(Request(50))).status().code(), absl::StatusCode::kResourceExhausted);
}

// A forecast is the policy's own doing: what it says is moved is what the policy moves.
TEST_F(ForecastTest, TellsTheBytesThatThePolicyMoves) {
  for (const int64_t budget : {45, 60, 75, 90, 105, 120}) {
    Make({10, 7, 13, 10, 5, 10, 12, 8, 10, 10}, budget);
    const auto forecast = Tell(Of(Kept()));
    ASSERT_TRUE(forecast.ok()) << forecast.status();
    for (const ForecastLap& lap : {forecast->first, forecast->repeated}) {
      int64_t read = 0;
      PolicyRider& rider = Join(Kept());
      const auto count_and_arrive = [&] {
        for (const StartLoad& load : Take<StartLoad>()) {
          if (load.source == nullptr) read += modules_[static_cast<size_t>(load.module)];
          Arrive(load.load);
        }
      };
      while (!rider.passed_all()) {
        std::optional<Pin> pin = Acquire(rider);
        while (!pin) {
          pin = Granted(rider);
          if (!pin) count_and_arrive();
        }
        Release(rider, *std::move(pin));
      }
      count_and_arrive();
      policy_->Leave(rider, now_, actions_);
      EXPECT_EQ(lap.disk_read_bytes, read) << "budget " << budget;
    }
  }
}

}  // namespace
}  // namespace ditserve
