#include "server/engine/operation_queue.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "absl/synchronization/notification.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/fake_device.h"

namespace ditserve {
namespace {

constexpr int kMost = OperationQueue::kMostModulesBehind;

// Passes when it is told to.
class ToldEvent final : public Event {
 public:
  bool Done() override { return passed_.HasBeenNotified(); }
  absl::Status Wait() override {
    passed_.WaitForNotification();
    return absl::OkStatus();
  }
  void Pass() { passed_.Notify(); }

 private:
  absl::Notification passed_;
};

// Passes its marks when it is told to, in their order.
class ToldDevice final : public FakeDevice {
 public:
  absl::StatusOr<EventPtr> MarkOperations() override {
    const absl::MutexLock lock(&mutex_);
    auto event = std::make_shared<ToldEvent>();
    marks_.push_back(event);
    return event;
  }
  void PassNext() {
    const absl::MutexLock lock(&mutex_);
    marks_[passed_++]->Pass();
  }

 private:
  absl::Mutex mutex_;
  std::vector<std::shared_ptr<ToldEvent>> marks_ ABSL_GUARDED_BY(mutex_);
  size_t passed_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Issues one module after the other.
class Pass {
 public:
  Pass(OperationQueue& operations, Executor& executor, int modules)
      : operations_(operations), executor_(executor), modules_(modules) {
    Post();
  }

  // Once so many are issued, and the executor has had the occasion to issue more, how many are.
  int IssuedFrom(int count) {
    {
      const absl::MutexLock lock(&mutex_);
      const auto enough = [&] { return issued_ >= count; };
      mutex_.Await(absl::Condition(&enough));
    }
    for (int i = 0; i < 100; ++i) {
      absl::Notification done;
      executor_.Post([&done] { done.Notify(); });
      done.WaitForNotification();
    }
    const absl::MutexLock lock(&mutex_);
    return issued_;
  }

 private:
  void Post() {
    executor_.Post([this] { Issue(); }, {});
  }
  void Issue() {
    EXPECT_TRUE(operations_.SetMark().ok());
    operations_.EndModule();
    {
      const absl::MutexLock lock(&mutex_);
      if (++issued_ == modules_) return;
    }
    Post();
  }

  OperationQueue& operations_;
  Executor& executor_;
  const int modules_;
  absl::Mutex mutex_;
  int issued_ ABSL_GUARDED_BY(mutex_) = 0;
};

TEST(OperationQueueTest, HoldsTheExecutorBackWhileTheDeviceIsAsManyModulesBehindAsItMayBe) {
  const FakeClock clock;
  ToldDevice device;
  Executor executor([] {}, &clock);
  OperationQueue operations(&device, &executor, &clock);
  Pass pass(operations, executor, 3 * kMost);
  for (int passed = 0; passed < 2 * kMost; ++passed) {
    EXPECT_EQ(pass.IssuedFrom(passed + kMost), passed + kMost);
    device.PassNext();
  }
  EXPECT_EQ(pass.IssuedFrom(3 * kMost), 3 * kMost);
  for (int left = 0; left < kMost; ++left) device.PassNext();
}

TEST(OperationQueueTest, ADeviceThatIsThroughWithEachOperationHoldsNobodyBack) {
  const FakeClock clock;
  FakeDevice device;
  Executor executor([] {}, &clock);
  OperationQueue operations(&device, &executor, &clock);
  EXPECT_EQ(Pass(operations, executor, 3 * kMost).IssuedFrom(3 * kMost), 3 * kMost);
}

}  // namespace
}  // namespace ditserve
