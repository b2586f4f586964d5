#include "server/engine/watchdog.h"

#include <gtest/gtest.h>

#include <memory>

#include "core/devices/cpu_device.h"
#include "tests/testing/forwarding_device.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kSecond = absl::Seconds(1);
constexpr int kA = 0, kB = 1;  // Passes.

class ProgressDeadlineTest : public ::testing::Test {
 protected:
  // A pass that takes a second for this work was seen.
  void Learn(double work) {
    deadline_.Began(&kA, work, now_);
    deadline_.Ended(&kA, /*has_output=*/true, now_ + kSecond);
  }
  // Seconds pass, with a look at each.
  void Pass(int seconds) {
    for (int i = 0; i < seconds; ++i) deadline_.Look(now_ += kSecond);
  }

  ProgressDeadline deadline_;
  absl::Duration now_;
};

TEST_F(ProgressDeadlineTest, AMarkIsOverdueAfterTwentyTimesWhatIsUnderWay) {
  Learn(100);
  deadline_.Began(&kA, 100, now_);
  deadline_.Began(&kB, 200, now_);
  EXPECT_EQ(deadline_.Allowed(), 60 * kSecond);
  deadline_.Marked();
  Pass(60);
  EXPECT_FALSE(deadline_.IsOverdue());
  Pass(1);
  EXPECT_TRUE(deadline_.IsOverdue());
}

TEST_F(ProgressDeadlineTest, SmallPassesHaveTenSeconds) {
  Learn(100);
  deadline_.Began(&kA, 1, now_);
  deadline_.Marked();
  Pass(10);
  EXPECT_FALSE(deadline_.IsOverdue());
  Pass(1);
  EXPECT_TRUE(deadline_.IsOverdue());
}

TEST_F(ProgressDeadlineTest, UntilAPassWasSeenAllGpusAreTakenToBeSlow) {
  deadline_.Began(&kA, 10 * ProgressDeadline::kAssumedPerSecond, now_);
  EXPECT_EQ(deadline_.Allowed(), 200 * kSecond);
}

TEST_F(ProgressDeadlineTest, TheSlowestOfTheLatestPassesCounts) {
  Learn(10);
  Learn(100);
  deadline_.Began(&kB, 100, now_);
  EXPECT_EQ(deadline_.Allowed(), 200 * kSecond);
  for (size_t i = 0; i < ProgressDeadline::kRemembered; ++i) Learn(100);
  EXPECT_EQ(deadline_.Allowed(), 20 * kSecond);
}

TEST_F(ProgressDeadlineTest, APassWithoutWorkTeachesNothing) {
  Learn(100);
  for (size_t i = 0; i < ProgressDeadline::kRemembered; ++i) {
    deadline_.Began(&kA, 100, now_);
    deadline_.Began(&kA, 0, now_);  // It was found on the way that it has none.
    deadline_.Ended(&kA, /*has_output=*/true, now_);
  }
  deadline_.Began(&kB, 100, now_);
  EXPECT_EQ(deadline_.Allowed(), 20 * kSecond);
}

TEST_F(ProgressDeadlineTest, WhatACancelledPassLeftOnTheDeviceIsWaitedForToo) {
  Learn(100);
  deadline_.Began(&kA, 100, now_);
  deadline_.Began(&kB, 100, now_);
  deadline_.Ended(&kA, /*has_output=*/false, now_);
  EXPECT_EQ(deadline_.Allowed(), 40 * kSecond);
  deadline_.Marked();
  EXPECT_EQ(deadline_.Allowed(), 40 * kSecond) << "it is before the mark";
  deadline_.Passed();
  EXPECT_EQ(deadline_.Allowed(), 20 * kSecond);
}

TEST_F(ProgressDeadlineTest, AMarkThatPassesBeginsAnew) {
  deadline_.Began(&kA, 0, now_);
  for (int i = 0; i < 10; ++i) {
    deadline_.Marked();
    Pass(9);
    deadline_.Passed();
    Pass(9);
    EXPECT_FALSE(deadline_.IsOverdue());
  }
}

TEST_F(ProgressDeadlineTest, AProcessThatWasStoppedHasNotLookedAndNothingIsOverdue) {
  deadline_.Began(&kA, 0, now_);
  deadline_.Look(now_);
  deadline_.Marked();
  deadline_.Look(now_ += absl::Hours(1));
  EXPECT_EQ(deadline_.age(), kSecond);
  EXPECT_FALSE(deadline_.IsOverdue());
}

TEST_F(ProgressDeadlineTest, WhereNobodyWaitsNothingIsOverdue) {
  deadline_.Began(&kA, 0, now_);
  deadline_.Marked();
  Pass(11);
  EXPECT_TRUE(deadline_.IsOverdue());
  deadline_.Ended(&kA, /*has_output=*/false, now_);
  EXPECT_FALSE(deadline_.IsOverdue());
}

// Events that pass when a test says so.
class MarkedDevice final : public ForwardingDevice {
 public:
  MarkedDevice() : ForwardingDevice(MakeCpuDevice(CpuBFloat16::kFloat32)) {}

  absl::StatusOr<Events> Mark() override {
    ++marks;
    return Events{operations, copies};
  }

  class Point final : public Event {
   public:
    bool Done() override { return passed; }
    absl::Status Wait() override { return absl::OkStatus(); }
    bool passed = false;
  };
  std::shared_ptr<Point> operations = std::make_shared<Point>(), copies = std::make_shared<Point>();
  int marks = 0;
};

class WatchdogTest : public ::testing::Test {
 protected:
  absl::Status CheckFor(int seconds) {
    absl::Status status;
    for (int i = 0; i < seconds; ++i) status.Update(watchdog_.Check(now_ += kSecond));
    return status;
  }

  MarkedDevice device_;
  Watchdog watchdog_{&device_};
  absl::Duration now_;
};

TEST_F(WatchdogTest, ADeviceThatDoesNotGetOnIsLostAndItIsToldForHowLong) {
  watchdog_.Began(&kA, 0, now_);
  EXPECT_THAT(CheckFor(11), IsOk());
  EXPECT_THAT(CheckFor(1), StatusIs(absl::StatusCode::kUnavailable, "cpu is lost: it has not got on for 11s"));
}

TEST_F(WatchdogTest, CopiesThatDoNotGetOnAreNoticedToo) {
  device_.operations->passed = true;
  watchdog_.Began(&kA, 0, now_);
  EXPECT_THAT(CheckFor(12), StatusIs(absl::StatusCode::kUnavailable, "has not got on"));
}

TEST_F(WatchdogTest, ADeviceThatGetsOnIsLeftAlone) {
  device_.operations->passed = device_.copies->passed = true;
  watchdog_.Began(&kA, 0, now_);
  EXPECT_THAT(CheckFor(100), IsOk());
  EXPECT_EQ(device_.marks, 100);
}

TEST_F(WatchdogTest, WhereNothingRidesNothingIsAsked) {
  EXPECT_THAT(CheckFor(100), IsOk());
  EXPECT_EQ(device_.marks, 0);
}

class AnswerDeadlineTest : public ::testing::Test {
 protected:
  AnswerDeadlineTest() { deadline_.Begun(); }

  absl::Status LookFor(int seconds) {
    absl::Status status;
    for (int i = 0; i < seconds; ++i) status.Update(deadline_.Look(now_ += kSecond));
    return status;
  }

  MarkedDevice device_;
  AnswerDeadline deadline_;
  absl::Duration now_;
};

TEST_F(AnswerDeadlineTest, ADeviceThatDoesNotAnswerIsLostAfterTenSecondsAndItIsToldForHowLong) {
  deadline_.Asked(device_);
  EXPECT_THAT(LookFor(10), IsOk());
  EXPECT_THAT(LookFor(1), StatusIs(absl::StatusCode::kUnavailable, "cpu is lost: it has not answered for 11s"));
}

TEST_F(AnswerDeadlineTest, WhileItBeginsADeviceHasAMinute) {
  AnswerDeadline starting;
  starting.Asked(device_);
  absl::Status status;
  for (int i = 0; i < 60; ++i) status.Update(starting.Look(now_ += kSecond));
  EXPECT_THAT(status, IsOk());
  EXPECT_THAT(starting.Look(now_ += kSecond), StatusIs(absl::StatusCode::kUnavailable, "not answered for 1m1s"));
}

TEST_F(AnswerDeadlineTest, EachAnswerHasTenSeconds) {
  for (int i = 0; i < 10; ++i) {
    deadline_.Asked(device_);
    EXPECT_THAT(LookFor(10), IsOk());
  }
}

TEST_F(AnswerDeadlineTest, WhereNothingIsAskedNoAnswerIsMissed) {
  deadline_.Asked(device_);
  deadline_.Answered();
  EXPECT_THAT(LookFor(100), IsOk());
}

TEST_F(AnswerDeadlineTest, AProcessThatWasStoppedHasNotLooked) {
  deadline_.Asked(device_);
  EXPECT_THAT(deadline_.Look(now_ += absl::Hours(1)), IsOk());
  EXPECT_THAT(LookFor(9), IsOk());
}

}  // namespace
}  // namespace ditserve
