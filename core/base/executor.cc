#include "core/base/executor.h"

#include <utility>

namespace ditserve {

Executor::Executor(Work on_start) {
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
  absl::MutexLock lock(&mutex_);
  queue_.emplace(turn, std::move(work));
}

bool Executor::HasBefore(const Turn& turn) const {
  absl::MutexLock lock(&mutex_);
  return !queue_.empty() && queue_.begin()->first < turn;
}

void Executor::Run() {
  for (;;) {
    Work work;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &Executor::HasWorkOrStops));
      if (queue_.empty()) return;
      work = std::move(queue_.begin()->second);
      queue_.erase(queue_.begin());
    }
    std::move(work)();
  }
}

}  // namespace ditserve
