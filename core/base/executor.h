#ifndef DITSERVE_CORE_BASE_EXECUTOR_H_
#define DITSERVE_CORE_BASE_EXECUTOR_H_

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
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
// has been ready for `ageing` goes before, so that nothing waits for ever, and of the time that is left what is of
// batch priority gets a tenth, so that a request of many short operations does not age at each of them. Where a device
// computes what is issued here, what has a turn can be held back until that is not far behind.
//
// Thread safety: thread-safe. Ownership: destroying it runs what was posted and joins the thread.
class Executor {
 public:
  using Work = absl::AnyInvocable<void() &&>;

  // `on_start` runs first on the new thread. `clock` must outlive it; without one nothing ages or has a share.
  explicit Executor(Work on_start, const Clock* clock = nullptr, absl::Duration ageing = absl::Seconds(5));
  ~Executor();

  // Runs `work` on the executor's thread, before all that has a turn. `work` must not throw.
  void Post(Work work) ABSL_LOCKS_EXCLUDED(mutex_);
  // When it is its turn.
  void Post(Work work, const Turn& turn) ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether something is ready that goes before `turn`, or turns are held back. What runs asks after each of its
  // operations, and gives way.
  bool HasBefore(const Turn& turn) ABSL_LOCKS_EXCLUDED(mutex_);

  // From now on nothing begins that has a turn; or it does again.
  void HoldBack(bool held) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Item {
    Work work;
    absl::Duration posted;
  };
  using Key = std::pair<Turn, int64_t>;  // The second: in which order they were posted.
  using Queue = std::map<Key, Item>;

  void Run();
  bool HasWorkOrStops() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !first_.empty() || (!held_back_ && !queue_.empty());
  }
  absl::Duration Now() const { return clock_ != nullptr ? clock_->Now() : absl::ZeroDuration(); }
  // Notes that an operation of what runs has ended.
  void EndOperation(absl::Duration now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Queue::iterator FirstOfBatch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What goes before its turn; the queue's end where nothing does.
  Queue::iterator Overdue(absl::Duration now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Work TakeNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Clock* const clock_;
  const absl::Duration ageing_;
  absl::Mutex mutex_;
  std::deque<Work> first_ ABSL_GUARDED_BY(mutex_);  // Without a turn.
  bool held_back_ ABSL_GUARDED_BY(mutex_) = false;
  Queue queue_ ABSL_GUARDED_BY(mutex_);
  std::map<int64_t, Key> arrivals_ ABSL_GUARDED_BY(mutex_);  // The same, oldest first.
  int64_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<Priority> running_ ABSL_GUARDED_BY(mutex_);  // Of what is in an operation.
  absl::Duration operation_begun_ ABSL_GUARDED_BY(mutex_);
  absl::Duration last_of_batch_ ABSL_GUARDED_BY(mutex_);  // What batch's last operation took,
  absl::Duration passed_over_ ABSL_GUARDED_BY(mutex_);    // and for how long it has been passed over since.
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_EXECUTOR_H_
