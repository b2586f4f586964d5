#include "core/base/executor.h"

#include <algorithm>
#include <utility>

namespace ditserve {
namespace {

// Batch goes first once it was passed over for so many times as long as its last operation took.
constexpr int kPassedOver = 9;

}  // namespace

Executor::Executor(Work on_start, const Clock* clock, absl::Duration ageing) : clock_(clock), ageing_(ageing) {
  thread_ = std::thread([this, start = std::move(on_start)]() mutable {
    std::move(start)();
    Run();
  });
}

Executor::~Executor() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void Executor::Post(Work work) {
  const absl::MutexLock lock(&mutex_);
  first_.push_back(std::move(work));
}

void Executor::Post(Work work, const Turn& turn) {
  const absl::Duration now = Now();
  absl::MutexLock lock(&mutex_);
  const Key key(turn, next_++);
  arrivals_.emplace(key.second, key);
  queue_.emplace(key, Item{std::move(work), now});
}

bool Executor::HasBefore(const Turn& turn) {
  const absl::Duration now = Now();
  absl::MutexLock lock(&mutex_);
  EndOperation(now);
  if (first_.empty() && queue_.empty() && !held_back_) return false;
  const bool before =
      !first_.empty() || held_back_ || queue_.begin()->first.first < turn || Overdue(now) != queue_.end();
  if (before) running_.reset();  // What is left of it is no operation.
  return before;
}

void Executor::HoldBack(bool held) {
  const absl::MutexLock lock(&mutex_);
  held_back_ = held;
}

void Executor::EndOperation(absl::Duration now) {
  if (!running_) return;
  const absl::Duration took = now - std::exchange(operation_begun_, now);
  if (*running_ == Priority::kBatch) {
    last_of_batch_ = took;
    passed_over_ = absl::ZeroDuration();
  } else if (const auto batch = FirstOfBatch(); batch != queue_.end()) {
    passed_over_ += std::min(took, now - batch->second.posted);
  }
}

Executor::Queue::iterator Executor::FirstOfBatch() { return queue_.lower_bound({Turn{Priority::kBatch}, 0}); }

Executor::Queue::iterator Executor::Overdue(absl::Duration now) {
  const auto oldest = queue_.find(arrivals_.begin()->second);
  if (clock_ != nullptr && now - oldest->second.posted >= ageing_) return oldest;
  return passed_over_ > kPassedOver * last_of_batch_ ? FirstOfBatch() : queue_.end();
}

Executor::Work Executor::TakeNext() {
  if (!first_.empty()) {
    Work work = std::move(first_.front());
    first_.pop_front();
    return work;
  }
  operation_begun_ = Now();
  const auto overdue = Overdue(operation_begun_);
  const auto next = overdue != queue_.end() ? overdue : queue_.begin();
  running_ = next->first.first.priority;
  Work work = std::move(next->second.work);
  arrivals_.erase(next->first.second);
  queue_.erase(next);
  return work;
}

void Executor::Run() {
  for (;;) {
    Work work;
    {
      absl::MutexLock lock(&mutex_);
      EndOperation(Now());
      running_.reset();
      mutex_.Await(absl::Condition(this, &Executor::HasWorkOrStops));
      if (first_.empty() && queue_.empty()) return;
      work = TakeNext();
    }
    std::move(work)();
  }
}

}  // namespace ditserve
