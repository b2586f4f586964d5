#ifndef DITSERVE_SERVER_ENGINE_RUNTIME_MEMORY_H_
#define DITSERVE_SERVER_ENGINE_RUNTIME_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/base/executor.h"
#include "core/devices/device.h"
#include "core/devices/tensor_memory.h"
#include "core/memory/arena.h"
#include "core/memory/buffer.h"
#include "core/memory/ledger.h"
#include "models/tensor_mover.h"

namespace ditserve {

// What LibTorch and the device's runtime hold for good of a device's memory, booked: what the device itself knows of,
// and what warming up finds. Passes of a small model bring LibTorch's workspaces, handles and kernels, and none of that
// has to be there when a request comes.
//
// Ownership: arguments of Make must outlive End. Thread safety: as TensorMemory.
class RuntimeMemory final : public TensorMemory, public std::enable_shared_from_this<RuntimeMemory> {
 public:
  // Computes on the executor, which takes tensors to the device by `link`. Errors: ResourceExhausted, with both
  // figures, if the device's budget is smaller than what is taken; as the device's.
  static absl::StatusOr<std::shared_ptr<RuntimeMemory>> Make(Device* device, Arena* arena, Ledger* ledger,
                                                             Executor* executor, TensorMover* link);
  ~RuntimeMemory() override;

  std::byte* Allocate(int64_t bytes) override ABSL_LOCKS_EXCLUDED(mutex_);
  void Free(std::byte* data) override ABSL_LOCKS_EXCLUDED(mutex_);

  // Gives everything back; nothing is computed any more, on other devices of the process either: what LibTorch keeps
  // for them goes too.
  void End() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // A granule or more for each: there are few.
  struct Part {
    Reservation reservation;
    Buffer buffer;
  };

  RuntimeMemory(Device* device, Arena* arena, Ledger* ledger) : device_(*device), arena_(*arena), ledger_(*ledger) {}

  // Warms up.
  absl::Status Book(Executor& executor, TensorMover& link);
  absl::StatusOr<Part> TakePart(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives back what is in no tensor, behind the operations that were issued.
  void Trim() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Exhausted(int64_t bytes) const;
  absl::Status refused() const ABSL_LOCKS_EXCLUDED(mutex_);

  Device& device_;
  Arena& arena_;
  Ledger& ledger_;
  Reservation elsewhere_;  // What the device's runtime holds itself.

  mutable absl::Mutex mutex_;
  std::map<std::byte*, Part> used_ ABSL_GUARDED_BY(mutex_);
  std::multimap<int64_t, Part> spare_ ABSL_GUARDED_BY(mutex_);  // By their size.
  absl::Status refused_ ABSL_GUARDED_BY(mutex_);                // Why Allocate had nothing.
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_RUNTIME_MEMORY_H_
