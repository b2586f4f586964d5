#ifndef DITSERVE_CORE_DEVICES_COMPLETIONS_H_
#define DITSERVE_CORE_DEVICES_COMPLETIONS_H_

#include <deque>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "core/devices/event.h"

namespace ditserve {

// A thread that waits for events, so that nobody else has to.
//
// Thread safety: thread-safe. Ownership: destroying it waits for what was asked for.
class Completions {
 public:
  using Done = absl::AnyInvocable<void(absl::Status) &&>;

  Completions();
  ~Completions();

  // Calls `done` once, on this thread, when all events have passed, with their first error.
  void When(Events events, Done done) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Awaited {
    Events events;
    Done done;
  };
  using Queue = std::deque<Awaited>;

  void Run();
  // Adds what came to `waiting`, and waits for something if that is empty. False when there is nothing, and will not
  // be.
  bool TakeNew(Queue& waiting) ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasNewOrStops() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !new_.empty(); }

  absl::Mutex mutex_;
  Queue new_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_COMPLETIONS_H_
