#ifndef DITSERVE_CORE_PLACEMENT_ROUTE_H_
#define DITSERVE_CORE_PLACEMENT_ROUTE_H_

#include <deque>
#include <vector>

#include "core/devices/device.h"
#include "core/placement/copy_form.h"
#include "core/placement/profile.h"
#include "core/storage/model_weights.h"

namespace ditserve {

// Index of a form in a FormTable.
using FormId = int;

// Gives equal forms equal numbers, so that copies can be told apart by comparing integers.
//
// Thread safety: thread-compatible. A form, once interned, stays the same at the same address as long as the table
// lives, so that it may be read without the lock that guards the table.
class FormTable {
 public:
  FormId Intern(const CopyForm& form);
  const CopyForm& form(FormId id) const { return forms_[id]; }
  // Whether `to` can be made from `from`: each parameter of the one from that of the other.
  bool Leads(FormId from, FormId to) const { return leads_[from][to]; }

 private:
  std::deque<CopyForm> forms_;
  std::vector<std::vector<bool>> leads_;  // Of each to each.
};

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
  FormId compute = -1;              // What operations read.
};

// The routes of all modules of `model` under `profile`, in execution order.
std::vector<Route> MakeRoutes(const ModelWeights& model, const Profile& profile, const Device& device,
                              FormTable& forms);

}  // namespace ditserve

#endif  // DITSERVE_CORE_PLACEMENT_ROUTE_H_
