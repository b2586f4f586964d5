#include "core/devices/completions.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

// Passes when it is told to, with what it is told.
class ToldEvent final : public Event {
 public:
  bool Done() override { return told_.HasBeenNotified(); }
  absl::Status Wait() override {
    told_.WaitForNotification();
    return status_;
  }
  void Pass(absl::Status status = absl::OkStatus()) {
    status_ = std::move(status);
    told_.Notify();
  }

 private:
  absl::Notification told_;
  absl::Status status_;
};

TEST(CompletionsTest, CallsBackWhenAllHavePassedWithTheFirstError) {
  auto first = std::make_shared<ToldEvent>(), second = std::make_shared<ToldEvent>();
  absl::Notification called;
  absl::Status status;
  Completions completions;
  completions.When({first, nullptr, second}, [&](absl::Status passed) {
    status = std::move(passed);
    called.Notify();
  });
  second->Pass(absl::InternalError("the second"));
  EXPECT_FALSE(called.WaitForNotificationWithTimeout(absl::Milliseconds(50))) << "the first has not passed";
  first->Pass(absl::InternalError("the first"));
  called.WaitForNotification();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kInternal, "the first"));
}

TEST(CompletionsTest, WhatHasPassedIsNotHeldUpByWhatCameBefore) {
  auto first = std::make_shared<ToldEvent>(), second = std::make_shared<ToldEvent>();
  absl::Notification both_are_there, second_called;
  Completions completions;
  completions.When({}, [&](const absl::Status&) { both_are_there.WaitForNotification(); });
  completions.When({first}, [](const absl::Status&) {});
  completions.When({second}, [&](const absl::Status&) { second_called.Notify(); });
  second->Pass();
  both_are_there.Notify();
  EXPECT_TRUE(second_called.WaitForNotificationWithTimeout(absl::Seconds(30)));
  first->Pass();
}

TEST(CompletionsTest, ItsEndWaitsForWhatWasAskedFor) {
  auto event = std::make_shared<ToldEvent>();
  std::atomic<bool> called = false;
  std::thread passes;
  {
    Completions completions;
    completions.When({event}, [&](const absl::Status&) { called = true; });
    passes = std::thread([&] {
      absl::SleepFor(absl::Milliseconds(50));
      event->Pass();
    });
  }
  EXPECT_TRUE(called);
  passes.join();
}

}  // namespace
}  // namespace ditserve
