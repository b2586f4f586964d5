#ifndef DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_ENGINE_H_
#define DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_ENGINE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "core/devices/completions.h"
#include "core/devices/device.h"
#include "core/devices/host_processors.h"
#include "core/memory/arena.h"
#include "core/memory/buffer.h"
#include "core/memory/ledger.h"
#include "core/residency/transfers/transfer.h"
#include "core/residency/transfers/transfer_job.h"
#include "core/residency/transfers/transfer_pace.h"
#include "core/residency/transfers/transfer_work.h"

namespace ditserve {

// Moves weights while executors compute: of each device a lane of a few threads, which read pieces of a few MiB and
// have the device convert and write them, and one more, which waits for what was enqueued. Several pieces are in flight
// at a time; a piece goes through all its targets while it is in the processor's cache. A lane begins transfers in the
// order in which they are submitted.
//
// Who wants a piece of a checkpoint that another is about to read, or reads, shares it; another lane does too as long
// as the piece still stands in the slot that it was read to. A device that is slow, or never done, holds up its own
// lane alone: no thread calls another lane's device or waits for it, and there are so many slots that each lane can
// hold as many as it has threads, and as many that others read to.
//
// Thread safety: thread-safe. Ownership: destroying it finishes what was submitted and joins the threads.
class TransferEngine {
 public:
  // For these devices, `threads` threads for each. Reserves slots in `host`, the host's memory. Errors:
  // ResourceExhausted if the host budget is too small for them.
  static absl::StatusOr<std::unique_ptr<TransferEngine>> Make(Arena* host, Ledger* ledger,
                                                              absl::Span<Device* const> devices, int threads);
  ~TransferEngine();

  void Submit(Transfer transfer) ABSL_LOCKS_EXCLUDED(mutex_);

  // For the device so far, by piece.
  Transferred transferred(const Device& device) const ABSL_LOCKS_EXCLUDED(mutex_);
  // The processor time of all threads so far.
  absl::Duration processor_time() const;
  // The same by what they did, as far as it was in memory that files can be read into.
  TransferWork work() const ABSL_LOCKS_EXCLUDED(mutex_);
  // That the process may use. A device's threads find as many, where nobody computes, as they are, or all.
  int processors() const { return processors_; }
  int processors_at_work() const { return std::min(processors_, threads_); }

  // Host bytes of the slots that Make reserves.
  static int64_t StagingBytes(size_t devices, int threads);

 private:
  using JobPtr = std::shared_ptr<TransferJob>;
  using Jobs = std::deque<JobPtr>;

  struct Lane;
  // Who has a piece read, and how much of that it pays.
  struct Sharer {
    Lane* lane;
    JobPtr job;
    int64_t read_bytes = 0;
  };
  struct Slot {
    Reservation reservation;
    Buffer buffer;
    std::optional<PieceId> holds;    // What is read to it, or was.
    std::byte* at = nullptr;         // Where that begins; null: it is being read.
    std::vector<Sharer> sharers;     // For whom.
    std::vector<const Lane*> lanes;  // That it was read for, or that took it since.
    int holders = 0;                 // Of these, who is not through with it.
  };
  // What of a slot one lane has to move.
  struct Part {
    Slot* slot;
    size_t piece;
    absl::StatusOr<std::byte*> at;  // Or why it was not read.
    std::vector<Sharer> sharers;
  };

  struct Lane {
    Jobs queue;             // With pieces that no thread has taken.
    std::deque<Part> read;  // By other lanes.
    int awaited = 0;        // Parts that those are reading.
    int own_slots = 0;      // That it reads to, or its device reads.
    int others_slots = 0;   // Likewise, but others read to them.
    bool stopping = false;
    Transferred done;
    std::unique_ptr<Completions> completions = std::make_unique<Completions>();  // Of what is enqueued.
    std::vector<std::thread> threads;
    std::vector<clockid_t> clocks;  // Of these, as long as they live.

    bool HasWorkOrEnds() const { return !queue.empty() || !read.empty() || (stopping && awaited == 0); }
  };

  TransferEngine(Arena* host, std::deque<Slot> slots, absl::Span<Device* const> devices, int threads);

  static absl::Duration ProcessorTimeOf(const Lane& lane);
  void Run(Lane* lane);
  // False when there is nothing to do, and will not be.
  bool DoNext(Lane& lane) ABSL_LOCKS_EXCLUDED(mutex_);
  void MovePiece(Lane& lane, const JobPtr& job, size_t piece);
  // Reads it for all who want it, unless another thread does.
  void ReadPiece(Lane& lane, const JobPtr& job, size_t piece);
  // Null: another thread reads it.
  Slot* BeginReading(Lane& lane, const JobPtr& job, size_t piece) ABSL_LOCKS_EXCLUDED(mutex_);
  // The job takes what the slot holds; false if its lane may not.
  bool Share(Slot& slot, Lane& lane, const JobPtr& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Hands other lanes their parts. What is left is the lane's.
  Part EndReading(Lane& lane, Slot& slot, const absl::StatusOr<std::byte*>& at,
                  const std::vector<TransferJob::Work>& work) ABSL_LOCKS_EXCLUDED(mutex_);
  // `slots`: of the lane's counts, the one in which the slot is.
  void MovePart(Lane& lane, const Part& part, int Lane::*slots);
  void GiveBack(Lane& lane, int Lane::*slots, Slot& slot) ABSL_LOCKS_EXCLUDED(mutex_);
  void Count(const std::vector<TransferJob::Work>& work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Finish(Lane& lane, const JobPtr& job, size_t piece, const absl::Status& status, TransferJob::Moved moved)
      ABSL_LOCKS_EXCLUDED(mutex_);

  Arena* const host_;
  const int threads_;
  const int processors_ = HostProcessors();
  mutable absl::Mutex mutex_;
  // What changes in these is guarded by the mutex, but for slots' bytes.
  std::deque<Slot> slots_;
  std::map<const Device*, Lane> lanes_;
  TransferWork work_ ABSL_GUARDED_BY(mutex_);
  std::deque<Slot*> free_ ABSL_GUARDED_BY(mutex_);  // Which nobody holds, the first the longest.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_ENGINE_H_
