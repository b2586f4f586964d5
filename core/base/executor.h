#ifndef DITSERVE_CORE_BASE_EXECUTOR_H_
#define DITSERVE_CORE_BASE_EXECUTOR_H_

#include <map>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "core/base/priority.h"

namespace ditserve {

// The thread that computes. Requests are cooperative tasks on it: one thread, and so one OpenMP team, however many
// requests there are. Of what is ready the most urgent runs first, so that all get an equal share of its time.
//
// Thread safety: thread-safe. Ownership: destroying it runs what was posted and joins the thread.
class Executor {
 public:
  using Work = absl::AnyInvocable<void() &&>;

  // `on_start` runs first on the new thread.
  explicit Executor(Work on_start);
  ~Executor();

  // Runs `work` on the executor's thread. `work` must not throw.
  void Post(Work work, const Turn& turn = {}) ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether something is ready that goes before `turn`.
  bool HasBefore(const Turn& turn) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run();
  bool HasWorkOrStops() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !queue_.empty(); }

  mutable absl::Mutex mutex_;
  std::multimap<Turn, Work> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_EXECUTOR_H_
