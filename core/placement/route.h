#ifndef DITSERVE_CORE_PLACEMENT_ROUTE_H_
#define DITSERVE_CORE_PLACEMENT_ROUTE_H_

#include <cstdint>
#include <vector>

#include "core/base/memory.h"

namespace ditserve {

// Index of a form in a FormTable.
using FormId = int;

// A place where a profile may keep a copy of a module.
struct Stop {
  Tier tier;  // kHost or kDevice.
  FormId form;

  friend bool operator==(const Stop&, const Stop&) = default;
};

// How a profile takes one module from the checkpoint to the operation. The values go through every station's dtype,
// whether or not a copy is kept there, so they do not depend on what is resident.
struct Route {
  std::vector<Stop> stops;          // Slowest first; stations on disk and repeated ones are left out.
  std::vector<int64_t> stop_bytes;  // Of a copy at each stop, in units of its memory's granule.
  int64_t compute_bytes = 0;        // Of a copy on the device that operations read.
  int rest = -1;                    // The stop at which the module rests while no request uses the profile.
  int limited = -1;                 // The stop that vram_limit bounds.
  FormId compute = -1;              // What operations read; -1: the pass does without the module.

  bool taken() const { return compute >= 0; }
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_PLACEMENT_ROUTE_H_
