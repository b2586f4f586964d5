#include "core/base/executor.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/synchronization/notification.h"
#include "tests/testing/fake_clock.h"

namespace ditserve {
namespace {

TEST(ExecutorTest, RunsTheMostUrgentFirstAndEqualOnesInOrder) {
  const FakeClock clock;
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

TEST(ExecutorTest, WhatWaitedLongGoesFirst) {
  std::string order;
  FakeClock moved;
  {
    Executor executor([] {}, &moved, absl::Seconds(5));
    absl::Notification begin, running;
    executor.Post([&] {
      running.Notify();
      begin.WaitForNotification();
    });
    running.WaitForNotification();
    executor.Post([&] { order += 'a'; }, {Priority::kInteractive, absl::Seconds(9)});
    moved.Advance(absl::Seconds(5));
    executor.Post([&] { order += 'b'; }, {Priority::kInteractive, absl::ZeroDuration()});
    EXPECT_TRUE(executor.HasBefore({Priority::kInteractive, absl::ZeroDuration()}));
    begin.Notify();
  }
  EXPECT_EQ(order, "ab");
}

constexpr absl::Duration kLoad = absl::Minutes(10);

// What comes again as soon as it was done, and takes so long each time, until the load is over.
class Loop {
 public:
  Loop(Executor& executor, FakeClock& clock, Priority priority, absl::Duration operation)
      : executor_(executor), clock_(clock), turn_{priority}, operation_(operation) {}

  void Post() {
    executor_.Post([this] { Run(); }, turn_);
  }
  absl::Duration computed() const { return turn_.attained; }

 private:
  void Run() {
    do {
      clock_.Advance(operation_);
      turn_.attained += operation_;
      if (clock_.Now() >= kLoad) return;
    } while (!executor_.HasBefore(turn_));
    Post();
  }

  Executor& executor_;
  FakeClock& clock_;
  Turn turn_;
  const absl::Duration operation_;
};

TEST(ExecutorTest, WhatIsLessUrgentGetsATenthOfTheTime) {
  for (const absl::Duration operation : {absl::Milliseconds(10), absl::Milliseconds(70), absl::Milliseconds(900)}) {
    FakeClock moved;
    auto executor = std::make_unique<Executor>([] {}, &moved, /*ageing=*/absl::InfiniteDuration());
    Loop first(*executor, moved, Priority::kInteractive, absl::Milliseconds(1));
    Loop second(*executor, moved, Priority::kInteractive, absl::Milliseconds(2));
    Loop batch(*executor, moved, Priority::kBatch, operation);
    Loop other(*executor, moved, Priority::kBatch, operation);
    executor->Post([&] {
      for (Loop* const loop : {&first, &second, &batch, &other}) loop->Post();
    });
    executor.reset();
    EXPECT_NEAR(absl::FDivDuration(batch.computed() + other.computed(), kLoad), 0.1, 0.005) << operation;
    EXPECT_NEAR(absl::FDivDuration(batch.computed(), other.computed()), 1, 0.05) << operation;
  }
}

TEST(ExecutorTest, WhatBatchWasPassedOverForIsPaidByOneOperation) {
  FakeClock moved;
  std::string order;
  {
    Executor executor([] {}, &moved, /*ageing=*/absl::InfiniteDuration());
    executor.Post([&] { moved.Advance(absl::Hours(1)); }, {});
    executor.Post(
        [&] {
          moved.Advance(absl::Seconds(1));
          executor.Post([&] { order += 'b'; }, {Priority::kBatch});
          executor.Post([&] { order += 'a'; }, {});
        },
        {Priority::kBatch});
  }
  EXPECT_EQ(order, "ab");
}

TEST(ExecutorTest, BatchIsPassedOverOnlyWhileItIsReady) {
  FakeClock moved;
  std::string order;
  {
    Executor executor([] {}, &moved, /*ageing=*/absl::InfiniteDuration());
    executor.Post(
        [&] {
          moved.Advance(absl::Seconds(1));
          executor.Post(
              [&] {
                moved.Advance(absl::Hours(1));
                executor.Post([&] { order += 'b'; }, {Priority::kBatch});
                executor.Post([&] { order += 'a'; }, {});
              },
              {});
        },
        {Priority::kBatch});
  }
  EXPECT_EQ(order, "ab");
}

TEST(ExecutorTest, WhileTurnsAreHeldBackOnlyWhatHasNoneRuns) {
  std::string order;
  Executor executor([] {});
  const auto pass = [&executor] {
    absl::Notification done;
    executor.Post([&done] { done.Notify(); });
    done.WaitForNotification();
  };
  executor.HoldBack(true);
  absl::Notification ended;
  executor.Post([&] { order += 'b'; }, {});
  executor.Post([&] { ended.Notify(); }, {Priority::kBatch});
  for (int i = 0; i < 100; ++i) pass();
  executor.Post([&] {
    order += 'a';
    EXPECT_TRUE(executor.HasBefore({})) << "whoever runs gives way";
  });
  pass();
  EXPECT_EQ(order, "a");
  executor.HoldBack(false);
  ended.WaitForNotification();
  EXPECT_EQ(order, "ab");
}

TEST(ExecutorTest, WhatIsHeldBackIsDoneBeforeItEnds) {
  bool done = false;
  {
    Executor executor([] {});
    executor.HoldBack(true);
    executor.Post([&] { done = true; }, {});
  }
  EXPECT_TRUE(done);
}

TEST(ExecutorTest, TellsWhetherSomethingMoreUrgentIsReady) {
  FakeClock clock;
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
