#ifndef DITSERVE_SERVER_ENGINE_MODULATION_CACHE_H_
#define DITSERVE_SERVER_ENGINE_MODULATION_CACHE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/base/dtype.h"
#include "core/devices/device.h"
#include "core/memory/arena.h"
#include "core/memory/buffer.h"
#include "core/memory/ledger.h"
#include "core/memory/region.h"
#include "core/placement/route.h"
#include "core/residency/residency_snapshot.h"
#include "core/residency/rider.h"

namespace ditserve {

// What a row of modulation follows from: nothing else changes a bit of it.
struct ModulationKey {
  ModelId model = -1;
  std::vector<FormId> forms;           // In which the modules that make it are computed with.
  DType arithmetic = DType::kFloat32;  // Of the pass.
  uint32_t timestep = 0;               // Bits of a float, as the model sees it.

  friend auto operator<=>(const ModulationKey&, const ModulationKey&) = default;
};

// Keeps rows of modulation (models/modulation.h) on a device, in a part of its budget that is taken for good. A pass
// holds those that it reads or makes; of the others those go first that nobody has asked for the longest, and none if
// that makes no room.
//
// Thread safety: thread-safe. Ownership: arguments of Make must outlive it, the device's operations need not be
// through.
class ModulationCache {
 public:
  // One row. While somebody holds it, it stays.
  class Row {
   public:
    std::byte* data() const { return data_; }

   private:
    friend class ModulationCache;
    std::byte* data_ = nullptr;
    int64_t offset_bytes_ = 0;
    int64_t used_ = 0;  // When last, by count.
    bool known_ = false;
  };
  using RowPtr = std::shared_ptr<Row>;

  // Errors: ResourceExhausted if the budget, or the device, has no such memory. bytes 0: it keeps nothing.
  static absl::StatusOr<std::unique_ptr<ModulationCache>> Make(Device* device, Arena* arena, Ledger* ledger,
                                                               int64_t bytes);
  ~ModulationCache();

  // A row that was made; null if there is none.
  RowPtr Find(const ModulationKey& key) ABSL_LOCKS_EXCLUDED(mutex_);
  // Memory for a row that is to be made: `bytes`. Null if it is there, or somebody makes it, or all is held.
  RowPtr Add(const ModulationKey& key, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Operations that write the row were issued: those that are issued from now on may read it.
  void Publish(const RowPtr& row) ABSL_LOCKS_EXCLUDED(mutex_);
  // The row, which was not published, is made no more.
  void Abandon(const RowPtr& row) ABSL_LOCKS_EXCLUDED(mutex_);

  // A pass begins that reads all its rows, or makes some.
  void CountPass(bool reads) ABSL_LOCKS_EXCLUDED(mutex_);
  ModulationInfo Info() const ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t size_bytes() const { return buffer_.size_bytes(); }

 private:
  ModulationCache(Device* device, Reservation reservation, Buffer buffer, int64_t bytes);

  using Rows = std::map<ModulationKey, RowPtr>;
  // Takes `bytes` of the region, for which as many rows go as it takes; nullopt, and none goes, if all is held.
  std::optional<int64_t> TakeRoom(int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Device* const device_;
  const Reservation reservation_;
  Buffer buffer_;

  mutable absl::Mutex mutex_;
  Region region_ ABSL_GUARDED_BY(mutex_);
  Rows rows_ ABSL_GUARDED_BY(mutex_);
  int64_t uses_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t hits_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t misses_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t evictions_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_MODULATION_CACHE_H_
