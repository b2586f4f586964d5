#ifndef DITSERVE_CORE_BASE_EXECUTOR_H_
#define DITSERVE_CORE_BASE_EXECUTOR_H_

#include <cstdint>
#include <map>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/base/clock.h"
#include "core/base/priority.h"

namespace ditserve {

// The thread that computes. Requests are cooperative tasks on it: one thread, and so one OpenMP team, however many
// requests there are. Of what is ready the most urgent runs first, so that all get an equal share of its time; but what
// has been ready for `ageing` goes before, so that nothing waits for ever.
//
// Thread safety: thread-safe. Ownership: destroying it runs what was posted and joins the thread.
class Executor {
 public:
  using Work = absl::AnyInvocable<void() &&>;

  // `on_start` runs first on the new thread. `clock` must outlive it.
  Executor(Work on_start, const Clock* clock, absl::Duration ageing = absl::Seconds(5));
  ~Executor();

  // Runs `work` on the executor's thread. `work` must not throw.
  void Post(Work work, const Turn& turn = {}) ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether something is ready that goes before `turn`.
  bool HasBefore(const Turn& turn) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Item {
    Work work;
    absl::Duration posted;
  };
  using Key = std::pair<Turn, int64_t>;  // The second: in which order they were posted.

  void Run();
  bool HasWorkOrStops() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !queue_.empty(); }
  bool IsAged(const Item& item) const { return clock_.Now() - item.posted >= ageing_; }
  Work TakeNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Clock& clock_;
  const absl::Duration ageing_;
  mutable absl::Mutex mutex_;
  std::map<Key, Item> queue_ ABSL_GUARDED_BY(mutex_);
  std::map<int64_t, Key> arrivals_ ABSL_GUARDED_BY(mutex_);  // The same, oldest first.
  int64_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_EXECUTOR_H_
