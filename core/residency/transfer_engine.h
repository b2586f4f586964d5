#ifndef DITSERVE_CORE_RESIDENCY_TRANSFER_ENGINE_H_
#define DITSERVE_CORE_RESIDENCY_TRANSFER_ENGINE_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/devices/device.h"
#include "core/memory/buffer.h"
#include "core/memory/ledger.h"
#include "core/placement/copy_form.h"
#include "core/storage/model_weights.h"

namespace ditserve {

// Bytes that a transfer moved.
struct TransferCost {
  int64_t disk_read_bytes = 0;
  int64_t device_copy_bytes = 0;  // Into the device's tier, in the dtype they came in.
};

// Makes copies of one module, each from the one before it: checkpoint or `source` -> targets[0] -> targets[1] ...
struct Transfer {
  // A copy that is read; it must stay until the transfer is done.
  struct Source {
    Buffer* buffer;
    CopyForm form;
  };
  // A copy that is written, of layout LayoutOf(module, form.dtype). Its form's roundings begin with those of the copy
  // before it.
  struct Target {
    Buffer* buffer;
    CopyForm form;
  };

  const ModelWeights* model;
  ModuleIndex module;
  std::optional<Source> source;  // Nullopt: the checkpoint.
  std::vector<Target> targets;
  // Called once on a transfer thread. After an error the targets' contents are undefined.
  absl::AnyInvocable<void(absl::Status, TransferCost) &&> done;
};

// Moves weights while the executor computes: a few threads, each with one fixed slot, that read, convert and write
// pieces of a few MiB. Several pieces are in flight at a time; a piece goes through all its targets while it is in the
// processor's cache. Transfers are begun in the order in which they are submitted.
//
// Thread safety: thread-safe. Ownership: destroying it finishes what was submitted and joins the threads.
class TransferEngine {
 public:
  // Reserves one slot a thread in host memory. Errors: ResourceExhausted if the host budget is too small for them.
  static absl::StatusOr<std::unique_ptr<TransferEngine>> Make(Device* device, Ledger* ledger, int threads);
  ~TransferEngine();

  void Submit(Transfer transfer) ABSL_LOCKS_EXCLUDED(mutex_);

  // Host bytes of the slots.
  int64_t staging_bytes() const { return StagingBytes(static_cast<int>(slots_.size())); }
  // Host bytes that Make reserves for `threads` threads.
  static int64_t StagingBytes(int threads);

 private:
  class Job;

  TransferEngine(Device* device, std::vector<Buffer> slots);
  void Run(Buffer* slot);
  // Null when the engine stops. Sets `piece` to the job's next one.
  std::shared_ptr<Job> NextPiece(size_t* piece) ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasWorkOrStops() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !queue_.empty(); }

  Device* const device_;
  std::vector<Buffer> slots_;
  absl::Mutex mutex_;
  std::deque<std::shared_ptr<Job>> queue_ ABSL_GUARDED_BY(mutex_);  // Jobs with pieces that no thread has taken.
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_TRANSFER_ENGINE_H_
