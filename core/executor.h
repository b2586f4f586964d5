#ifndef DITSERVE_CORE_EXECUTOR_H_
#define DITSERVE_CORE_EXECUTOR_H_

#include <deque>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"

namespace ditserve {

// The thread that computes. Requests are cooperative tasks on it, resumed in the order in which they became ready: one
// thread, and so one OpenMP team, however many requests there are.
//
// Thread safety: thread-safe. Ownership: destroying it runs what was posted and joins the thread.
class Executor {
 public:
  using Work = absl::AnyInvocable<void() &&>;

  // `on_start` runs first on the new thread.
  explicit Executor(Work on_start);
  ~Executor();

  // Runs `work` on the executor's thread after what was posted before. `work` must not throw.
  void Post(Work work) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run();
  bool HasWorkOrStops() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !queue_.empty(); }

  absl::Mutex mutex_;
  std::deque<Work> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_EXECUTOR_H_
