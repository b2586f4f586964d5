#include "core/base/executor.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/synchronization/notification.h"

namespace ditserve {
namespace {

const SteadyClock clock;

TEST(ExecutorTest, RunsTheMostUrgentFirstAndEqualOnesInOrder) {
  std::string order;
  {
    Executor executor([] {}, &clock);
    absl::Notification begin;
    executor.Post([&] { begin.WaitForNotification(); });
    executor.Post([&] { order += 'e'; }, {Priority::kBatch, absl::ZeroDuration()});
    executor.Post([&] { order += 'd'; }, {Priority::kInteractive, absl::Seconds(2)});
    executor.Post([&] { order += 'b'; }, {Priority::kInteractive, absl::Seconds(1)});
    executor.Post([&] { order += 'c'; }, {Priority::kInteractive, absl::Seconds(1)});
    executor.Post([&] { order += 'a'; });
    begin.Notify();
  }
  EXPECT_EQ(order, "abcde");
}

TEST(ExecutorTest, TellsWhetherSomethingMoreUrgentIsReady) {
  Executor executor([] {}, &clock);
  absl::Notification begin;
  absl::Notification running;
  executor.Post([&] {
    running.Notify();
    begin.WaitForNotification();
  });
  running.WaitForNotification();
  EXPECT_FALSE(executor.HasBefore({Priority::kBatch, absl::InfiniteDuration()}));
  executor.Post([] {}, {Priority::kInteractive, absl::Seconds(1)});
  EXPECT_TRUE(executor.HasBefore({Priority::kInteractive, absl::Seconds(2)}));
  EXPECT_TRUE(executor.HasBefore({Priority::kBatch, absl::ZeroDuration()}));
  EXPECT_FALSE(executor.HasBefore({Priority::kInteractive, absl::Seconds(1)})) << "equals go on";
  begin.Notify();
}

}  // namespace
}  // namespace ditserve
