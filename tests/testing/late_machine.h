#ifndef DITSERVE_TESTS_TESTING_LATE_MACHINE_H_
#define DITSERVE_TESTS_TESTING_LATE_MACHINE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "tests/testing/stream_fiber.h"

namespace ditserve {

// The machine that doubles of devices are in: their streams and the host, what each has done to which bytes, and in
// which order points of streams put that. Work is done as late as can be, when somebody waits for a point or asks for
// it, and whose turn it then is among the streams is random by seed.
//
// The order is told by vector clocks, one of each stream and one of the host (all its threads together: what orders
// them can't be seen here). Every access is checked when it is enqueued, so that a missing wait shows in every
// schedule. Under ThreadSanitizer each stream is a fiber besides, so that what its work touches is ordered with what
// the host's threads touch by points alone.
//
// It has a time of its own, in which operations last as long as a test says, each from when its stream and what it
// waits for have come to it. It does not depend on when work is done.
//
// Ownership: outlives whoever enqueues. A race that nobody has taken ends the process. Thread safety: thread-safe.
class LateMachine {
 public:
  class Point;  // The end of an operation.
  using PointPtr = std::shared_ptr<Point>;
  using Work = absl::AnyInvocable<void()>;  // May be null.
  struct Access {
    const void* begin;
    int64_t bytes;
    bool writes;
  };

  explicit LateMachine(uint32_t seed) : random_(seed) {}
  ~LateMachine();
  LateMachine(const LateMachine&) = delete;
  LateMachine& operator=(const LateMachine&) = delete;

  // Does all that is left, and begins anew with another seed: nothing has touched anything yet, and streams that were
  // removed may come again as others. Streams stay.
  void Begin(uint32_t seed) ABSL_LOCKS_EXCLUDED(running_, mutex_);

  size_t AddStream() ABSL_LOCKS_EXCLUDED(mutex_);
  // What was enqueued is done nevertheless.
  void RemoveStream(size_t stream) ABSL_LOCKS_EXCLUDED(mutex_);

  // At the end of the stream, and once the points have passed (null ones have). `place` names it in what is reported.
  PointPtr Enqueue(size_t stream, const std::string& place, absl::Span<const PointPtr> after,
                   const std::vector<Access>& accesses, Work work) ABSL_LOCKS_EXCLUDED(mutex_);
  // What is enqueued from now on comes after the point.
  void OrderStream(size_t stream, const PointPtr& point) ABSL_LOCKS_EXCLUDED(mutex_);

  void WaitFor(const PointPtr& point) ABSL_LOCKS_EXCLUDED(running_, mutex_);
  // Whoever asks again and again finds that it passes.
  bool IsDone(const PointPtr& point) ABSL_LOCKS_EXCLUDED(running_, mutex_);

  // The host's threads access memory now.
  void HostReads(const void* begin, int64_t bytes, const std::string& place) ABSL_LOCKS_EXCLUDED(mutex_);
  void HostWrites(const void* begin, int64_t bytes, const std::string& place) ABSL_LOCKS_EXCLUDED(mutex_);
  // The host takes the memory: as if it wrote, and then nobody has touched it. False: that is a race.
  bool HostTakes(const void* begin, int64_t bytes, const std::string& place) ABSL_LOCKS_EXCLUDED(mutex_);

  // How long operations last that are enqueued from now on, by their names; until Begin, nothing.
  void SetDurations(std::function<absl::Duration(const std::string& place)> durations) ABSL_LOCKS_EXCLUDED(mutex_);
  // What is enqueued from now on comes so much later: the host has been busy with something else.
  void KeepHostBusy(absl::Duration time) ABSL_LOCKS_EXCLUDED(mutex_);
  // When the point passes, and when all that was enqueued does.
  absl::Duration PassesAt(const PointPtr& point) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Duration EndsAt() ABSL_LOCKS_EXCLUDED(mutex_);
  // What was enqueued while operations lasted, in order, for whoever lets them share what does them.
  struct Timed {
    size_t stream;
    std::string place;
    std::vector<size_t> after;  // Of these; it comes after the one before it on its stream, too.
    absl::Duration duration;
  };
  std::vector<Timed> TimedOperations() ABSL_LOCKS_EXCLUDED(mutex_);
  // How many operations of this name nobody has had done yet.
  int64_t Pending(const std::string& place) ABSL_LOCKS_EXCLUDED(mutex_);

  // Does one thing that may be done now; false if nothing is left to do.
  bool RunSome() ABSL_LOCKS_EXCLUDED(running_, mutex_);

  // One of so many, by the seed.
  size_t Pick(size_t below) ABSL_LOCKS_EXCLUDED(mutex_);

  // Something else that is wrong, told as a race is.
  void Report(std::string what) ABSL_LOCKS_EXCLUDED(mutex_);
  // What was not ordered as it must be, each with both its places, and what was reported; forgets it.
  std::vector<std::string> TakeRaces() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Clock = std::vector<int64_t>;  // By stream; 0 is the host.
  using Place = std::shared_ptr<const std::string>;

  struct Operation {
    std::vector<PointPtr> after;
    PointPtr end;
    StreamTask task;
    Place place;
  };
  struct Stream {
    Clock clock;
    std::deque<Operation> pending;
    std::vector<PointPtr> after;  // Of the next operation.
    PointPtr last;
    absl::Duration time;  // When what was enqueued ends.
    StreamFiber fiber;
  };
  // Who accessed bytes last.
  struct Epoch {
    size_t stream;
    int64_t time;
    Place place;
  };
  struct Cell {
    const std::byte* end;
    std::vector<Epoch> writes;  // None or one.
    std::vector<Epoch> reads;   // One of each stream, since the write.
  };
  using Cells = std::map<const std::byte*, Cell>;

  void HostAccess(const Access& access, const std::string& place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Check(const Access& access, size_t stream, const Clock& clock, const Place& place)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Makes cells of the bytes, which then begin and end where they do; the first of them.
  Cells::iterator MakeCells(const std::byte* begin, const std::byte* end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SplitAt(const std::byte* at) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex running_;  // Before mutex_. Held while an operation works.
  absl::Mutex mutex_;
  std::mt19937 random_ ABSL_GUARDED_BY(mutex_);
  std::deque<Stream> streams_ ABSL_GUARDED_BY(mutex_) = std::deque<Stream>(1);  // The host's only has a clock.
  std::vector<size_t> removed_ ABSL_GUARDED_BY(mutex_), unused_ ABSL_GUARDED_BY(mutex_);
  Cells cells_ ABSL_GUARDED_BY(mutex_);
  std::function<absl::Duration(const std::string&)> durations_ ABSL_GUARDED_BY(mutex_);
  absl::Duration host_time_ ABSL_GUARDED_BY(mutex_);
  std::vector<Timed> timed_ ABSL_GUARDED_BY(mutex_);
  size_t timed_before_ ABSL_GUARDED_BY(mutex_) = 0;  // Until Begin.
  std::vector<std::string> races_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_LATE_MACHINE_H_
