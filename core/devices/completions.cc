#include "core/devices/completions.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace ditserve {

Completions::Completions() : thread_([this] { Run(); }) {}

Completions::~Completions() {
  {
    const absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void Completions::When(Events events, Done done) {
  const absl::MutexLock lock(&mutex_);
  new_.push_back({std::move(events), std::move(done)});
}

void Completions::Run() {
  Queue waiting;
  while (TakeNew(waiting)) {
    auto next =
        std::find_if(waiting.begin(), waiting.end(), [](const Awaited& awaited) { return AllDone(awaited.events); });
    if (next == waiting.end()) next = waiting.begin();  // It was there first.
    absl::Status status = WaitForAll(next->events);
    std::move(next->done)(std::move(status));
    waiting.erase(next);
  }
}

bool Completions::TakeNew(Queue& waiting) {
  const absl::MutexLock lock(&mutex_);
  if (waiting.empty()) mutex_.Await(absl::Condition(this, &Completions::HasNewOrStops));
  std::move(new_.begin(), new_.end(), std::back_inserter(waiting));
  new_.clear();
  return !waiting.empty();
}

}  // namespace ditserve
