#include "core/base/executor.h"

#include <utility>

namespace ditserve {

Executor::Executor(Work on_start, const Clock* clock, absl::Duration ageing) : clock_(*clock), ageing_(ageing) {
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

void Executor::Post(Work work, const Turn& turn) {
  const absl::Duration now = clock_.Now();
  absl::MutexLock lock(&mutex_);
  const Key key(turn, next_++);
  arrivals_.emplace(key.second, key);
  queue_.emplace(key, Item{std::move(work), now});
}

bool Executor::HasBefore(const Turn& turn) const {
  absl::MutexLock lock(&mutex_);
  if (queue_.empty()) return false;
  return queue_.begin()->first.first < turn || IsAged(queue_.at(arrivals_.begin()->second));
}

Executor::Work Executor::TakeNext() {
  const auto oldest = queue_.find(arrivals_.begin()->second);
  const auto next = IsAged(oldest->second) ? oldest : queue_.begin();
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
      mutex_.Await(absl::Condition(this, &Executor::HasWorkOrStops));
      if (queue_.empty()) return;
      work = TakeNext();
    }
    std::move(work)();
  }
}

}  // namespace ditserve
