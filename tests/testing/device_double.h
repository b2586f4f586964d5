#ifndef DITSERVE_TESTS_TESTING_DEVICE_DOUBLE_H_
#define DITSERVE_TESTS_TESTING_DEVICE_DOUBLE_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "tests/testing/fake_device.h"

namespace ditserve {

// Bytes that an operation reads.
struct DoubleRange {
  const void* begin;
  int64_t bytes;
};

// The machine in which device doubles are: their streams and the host, what each has done to which bytes, and in which
// order events put that. Work is done as late as can be, when somebody waits for an event or asks for it, and whose
// turn it then is among the streams is random by seed.
//
// The order is told by vector clocks, one of each stream and one of the host (all its threads together: what orders
// them can't be seen here). Every access is checked when it is enqueued, so that a missing wait shows in every
// schedule.
//
// Ownership: outlives its devices. A race that no test has taken ends the process. Thread safety: thread-safe.
class DoubleWorld {
 public:
  explicit DoubleWorld(uint32_t seed) : random_(seed) {}
  ~DoubleWorld();

  // The host's threads access memory now.
  void HostReads(const void* begin, int64_t bytes, const std::string& place) ABSL_LOCKS_EXCLUDED(mutex_);
  void HostWrites(const void* begin, int64_t bytes, const std::string& place) ABSL_LOCKS_EXCLUDED(mutex_);

  // Does one thing that may be done now; false if nothing is left to do.
  bool RunSome() ABSL_LOCKS_EXCLUDED(running_, mutex_);

  // What was not ordered as it must be, each with both its places, and forgets it.
  std::vector<std::string> TakeRaces() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend class DeviceDouble;
  class PointEvent;

  using Clock = std::vector<int64_t>;  // By stream; 0 is the host.
  using Place = std::shared_ptr<const std::string>;

  // The end of an operation.
  struct Point {
    Clock clock;
    bool done = false;
  };
  using PointPtr = std::shared_ptr<Point>;
  struct Operation {
    std::vector<PointPtr> after;
    absl::AnyInvocable<void()> work;  // May be null.
    PointPtr end;
  };
  struct Stream {
    Clock clock;
    std::deque<Operation> pending;
    std::vector<PointPtr> after;  // Of the next operation.
  };
  struct Access {
    const std::byte* begin;
    int64_t bytes;
    bool writes;
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

  size_t AddStream() ABSL_LOCKS_EXCLUDED(mutex_);
  size_t PickOf(const std::vector<size_t>& streams) ABSL_LOCKS_EXCLUDED(mutex_);
  EventPtr Enqueue(size_t stream, const std::string& place, absl::Span<const EventPtr> after,
                   const std::vector<Access>& accesses, absl::AnyInvocable<void()> work) ABSL_LOCKS_EXCLUDED(mutex_);
  void OrderStream(size_t stream, const EventPtr& event) ABSL_LOCKS_EXCLUDED(mutex_);
  void WaitFor(const PointPtr& point) ABSL_LOCKS_EXCLUDED(running_, mutex_);
  bool IsDone(const PointPtr& point) ABSL_LOCKS_EXCLUDED(running_, mutex_);

  void HostAccess(const Access& access, const std::string& place) ABSL_LOCKS_EXCLUDED(mutex_);
  void Check(const Access& access, size_t stream, const Clock& clock, const Place& place)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Makes cells of the bytes, which then begin and end where they do.
  void MakeCells(const std::byte* begin, const std::byte* end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SplitAt(const std::byte* at) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static PointPtr PointOf(const EventPtr& event);

  absl::Mutex running_;  // Before mutex_. Held while an operation works.
  absl::Mutex mutex_;
  std::mt19937 random_ ABSL_GUARDED_BY(mutex_);
  std::deque<Stream> streams_ ABSL_GUARDED_BY(mutex_) = std::deque<Stream>(1);  // The host's only has a clock.
  std::map<const std::byte*, Cell> cells_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> races_ ABSL_GUARDED_BY(mutex_);
};

// A device with memory, streams for copies and one for computing of its own, in a world of doubles. Which stream a copy
// takes is random: copies are in no order but that of their events. Memory is overwritten with a pattern when it is
// given, when it is taken, and before it is written.
class DeviceDouble final : public FakeDevice {
 public:
  explicit DeviceDouble(DoubleWorld* world, Memory memory = Memory::kDevice);
  // Finishes what was enqueued.
  ~DeviceDouble() override;

  // An operation of the executor, named for what is reported, that reads memory when it comes to it.
  void Compute(const std::string& name, const std::vector<DoubleRange>& reads, absl::AnyInvocable<void()> work = {});

  absl::StatusOr<EventPtr> Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) override;
  absl::Status ComputeAfter(const EventPtr& event) override;
  absl::Status Operate(const Conversion& conversion) override;
  absl::StatusOr<EventPtr> RecordOperations() override;
  absl::Status Commit(Memory memory, std::byte* begin, int64_t bytes) override;
  void Decommit(Memory memory, std::byte* begin, int64_t bytes) override;
  absl::Status Move(Memory memory, std::byte* from, std::byte* to, int64_t bytes) override;

  static constexpr int kPattern = 0xa5;

 private:
  // Of elements, on a stream.
  EventPtr EnqueueElements(size_t stream, const Conversion& conversion, absl::Span<const EventPtr> after);

  DoubleWorld& world_;
  const size_t computing_;
  const std::vector<size_t> copies_;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_DEVICE_DOUBLE_H_
