#ifndef DITSERVE_CORE_RESIDENCY_POLICY_ACTIONS_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_ACTIONS_H_

#include <cstdint>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "core/base/memory.h"
#include "core/residency/policy/copy_store.h"
#include "core/residency/policy/sweeps.h"

namespace ditserve {

// A load of the policy. Ids are not used again.
using LoadId = int64_t;

// Make `targets`, each from the one before it, from `source`, or from the checkpoint if that is null. To be answered
// with Policy::Enqueued and Finished, or Failed, or Refused.
struct StartLoad {
  LoadId load;
  WeightsId weights;
  ModuleIndex module;
  Memory device;               // Whose link it takes.
  const Copy* source;          // It stays until Finished.
  std::vector<Copy*> targets;  // The last one is what operations read.
};

// The copy is gone; its memory goes to the cache. `id` may be another copy's from here on.
struct DropCopy {
  int id;
};

// Give `bytes` of a memory's cache back to the system. To be answered with Policy::Freed, also in parts.
struct TrimCache {
  Memory memory;
  int64_t bytes;
};

// The rider has what it waits for. The pin is given back with Policy::Release.
struct Grant {
  PolicyRider* rider;
  Pin pin;
};

// The rider is admitted: its activations are booked.
struct Admit {
  PolicyRider* rider;
  int64_t grown_bytes;  // Of these, what was not in its memory's cache.
};

// The rider may acquire.
struct Begin {
  PolicyRider* rider;
};

// What the rider waits for, admission or a module, it does not get.
struct End {
  PolicyRider* rider;
  absl::Status why;
};

using Action = std::variant<StartLoad, DropCopy, TrimCache, Admit, Grant, Begin, End>;

// To be carried out in this order.
using Actions = std::vector<Action>;

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_ACTIONS_H_
