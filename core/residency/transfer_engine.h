#ifndef DITSERVE_CORE_RESIDENCY_TRANSFER_ENGINE_H_
#define DITSERVE_CORE_RESIDENCY_TRANSFER_ENGINE_H_

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/devices/completions.h"
#include "core/devices/device.h"
#include "core/memory/arena.h"
#include "core/memory/buffer.h"
#include "core/memory/ledger.h"
#include "core/placement/copy_form.h"
#include "core/residency/transfer_pace.h"
#include "core/residency/transfer_work.h"
#include "core/storage/model_weights.h"

namespace ditserve {

// Bytes that a transfer moved.
struct TransferCost {
  int64_t disk_read_bytes = 0;    // Its share of what was read for several.
  int64_t device_copy_bytes = 0;  // From host memory to the device's, in the dtype they came in.
};

// Makes copies of one module, each from the one before it: checkpoint or `source` -> targets[0] -> targets[1] ...
//
// Ownership: forms are read on transfer threads and must not change until `done`. They have no scales: those would stay
// behind.
struct Transfer {
  // A copy that is read, ready or not. It must stay until the transfer is done.
  struct Source {
    Buffer* buffer;
    const CopyForm* form;
  };
  // A copy that is written, of layout LayoutOf(module, *form); its event is set when `enqueued` is called. Its
  // form's roundings begin with those of the copy before it. It must stay until `enqueued` is called, after an error
  // until `done`.
  struct Target {
    Buffer* buffer;
    const CopyForm* form;
    int64_t fresh_bytes = 0;  // Of its memory, what was never written before.
  };

  Device* device;  // In whose memory and the host's the copies are.
  const ModelWeights* model;
  ModuleIndex module;
  std::optional<Source> source;  // Nullopt: the checkpoint.
  std::vector<Target> targets;
  // Called once on a transfer thread, when everything is read and the device knows all that is to be written: what is
  // ordered behind the targets' events may begin. After an error their contents are undefined. May be null.
  absl::AnyInvocable<void(absl::Status, TransferCost) &&> enqueued;
  // Called once, after `enqueued`, when the targets' events have passed, with the first error of all.
  absl::AnyInvocable<void(absl::Status) &&> done;
};

// Moves weights while executors compute: a few threads, each with one fixed slot, that read pieces of a few MiB and
// have the device convert and write them. Several pieces are in flight at a time; a piece goes through all its targets
// while it is in the processor's cache. What several transfers want of one module of a checkpoint, for several devices
// say, is read once: one that is submitted while another is under way shares what that has yet to read, and reads the
// rest after it. Transfers are begun in the order in which they are submitted. A thread waits for the device where it
// writes host memory that the device still reads; one more thread waits for what is enqueued.
//
// Thread safety: thread-safe. Ownership: destroying it finishes what was submitted and joins the threads.
class TransferEngine {
 public:
  // Reserves one slot a thread in `host`, the host's memory. Errors: ResourceExhausted if the host budget is too small
  // for them.
  static absl::StatusOr<std::unique_ptr<TransferEngine>> Make(Arena* host, Ledger* ledger, int threads);
  ~TransferEngine();

  void Submit(Transfer transfer) ABSL_LOCKS_EXCLUDED(mutex_);

  // For the device so far, by piece; `work` is for all of them.
  Transferred transferred(const Device& device) const ABSL_LOCKS_EXCLUDED(mutex_);
  // The processor time of its threads so far.
  absl::Duration processor_time() const;
  // The same by what they did, as far as it was in memory that files can be read into.
  TransferWork work() const ABSL_LOCKS_EXCLUDED(mutex_);
  // That the machine has. Its threads find as many, where nobody computes, as there are threads, or all.
  int processors() const { return processors_; }
  int processors_at_work() const { return std::min(processors_, static_cast<int>(threads_.size())); }

  // Host bytes of the slots.
  int64_t staging_bytes() const { return StagingBytes(static_cast<int>(slots_.size())); }
  // Host bytes that Make reserves for `threads` threads.
  static int64_t StagingBytes(int threads);

 private:
  class Job;
  using Jobs = std::deque<std::shared_ptr<Job>>;

  // Where a thread reads pieces to.
  struct Slot {
    Reservation reservation;
    Buffer buffer;
    Events readers;  // Conversions that still read it.
  };

  TransferEngine(Arena* host, std::vector<Slot> slots);
  void Run(Slot* slot);
  // Jobs that share their next piece; none when the engine stops.
  std::vector<std::shared_ptr<Job>> NextPiece(size_t* piece) ABSL_LOCKS_EXCLUDED(mutex_);
  // What a thread did to bytes.
  struct Work {
    TransferStep step;
    TimedBytes took;
  };
  void Count(const std::vector<std::shared_ptr<Job>>& jobs, size_t piece, const std::vector<Work>& work)
      ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasWorkOrStops() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !queue_.empty(); }

  Arena* const host_;
  const int processors_ = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::vector<Slot> slots_;
  mutable absl::Mutex mutex_;
  std::map<const Device*, Transferred> transferred_ ABSL_GUARDED_BY(mutex_);
  TransferWork work_ ABSL_GUARDED_BY(mutex_);
  Jobs queue_ ABSL_GUARDED_BY(mutex_);  // With pieces that no thread has taken.
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<Completions> completions_ = std::make_unique<Completions>();  // Of what is enqueued.
  std::vector<std::thread> threads_;
  std::vector<clockid_t> thread_clocks_;  // As long as they live.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_TRANSFER_ENGINE_H_
