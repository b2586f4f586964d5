#ifndef DITSERVE_CORE_RESIDENCY_COPY_TABLE_H_
#define DITSERVE_CORE_RESIDENCY_COPY_TABLE_H_

#include <memory>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "core/memory/buffer.h"
#include "core/memory/ledger.h"
#include "core/placement/profile.h"
#include "core/placement/route.h"
#include "core/storage/module.h"

namespace ditserve {

// Memory for a copy.
struct Room {
  Reservation reservation;  // The last to go.
  Buffer buffer;
  bool in_window = false;  // Its bytes are the streaming window's.
};

// The weights of one module, in one form, in one tier.
struct Copy {
  ModuleIndex module;
  Tier tier;
  FormId form;
  Room room;
  bool ready = false;                        // False while a transfer writes it.
  bool fresh = true;                         // Loaded and not used since.
  bool rests = false;                        // A profile that was used rests here.
  int pins = 0;                              // Leases and transfers that use it; it is not moved meanwhile.
  std::optional<absl::Duration> idle_since;  // When a rider that kept it left.
};

// The copies of one model's weights. Addresses are stable.
//
// Thread safety: thread-compatible.
class CopyTable {
 public:
  explicit CopyTable(int modules) : modules_(modules) {}

  // Null if there is none.
  Copy* Find(ModuleIndex module, Tier tier, FormId form) const;
  Copy* Add(ModuleIndex module, Tier tier, FormId form, Room room);
  // Gives back the copy's memory.
  Room Remove(Copy& copy);

  const std::vector<std::unique_ptr<Copy>>& Of(ModuleIndex module) const { return modules_[module]; }
  // All copies at this moment.
  std::vector<Copy*> All() const;
  int size() const { return static_cast<int>(modules_.size()); }

 private:
  std::vector<std::vector<std::unique_ptr<Copy>>> modules_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_COPY_TABLE_H_
