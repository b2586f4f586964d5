#ifndef DITSERVE_CORE_PLACEMENT_ROUTE_MAKER_H_
#define DITSERVE_CORE_PLACEMENT_ROUTE_MAKER_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/status/status.h"
#include "core/devices/device.h"
#include "core/placement/copy_form.h"
#include "core/placement/profile.h"
#include "core/placement/route.h"
#include "core/storage/model_weights.h"

namespace ditserve {

// Gives equal forms equal numbers, so that copies can be told apart by comparing integers.
//
// Thread safety: thread-compatible. A form, once interned, stays the same at the same address as long as the table
// lives, so that it may be read without the lock that guards the table.
class FormTable {
 public:
  FormId Intern(const CopyForm& form);
  const CopyForm& form(FormId id) const { return forms_[id]; }
  int size() const { return static_cast<int>(forms_.size()); }
  // Whether `to` can be made from `from`: each parameter of the one from that of the other.
  bool Leads(FormId from, FormId to) const { return leads_[from][to]; }

 private:
  std::deque<CopyForm> forms_;
  std::vector<std::vector<bool>> leads_;  // Of each to each.
};

// Whether `device` can compute as `profile` says. Errors: FailedPrecondition of the field of a request that asks for
// it, `profile` or `vram_config.computation_dtype`.
absl::Status CheckComputation(const Profile& profile, const Device& device);

// The routes of all modules of `model` under `profile`, in execution order.
std::vector<Route> MakeRoutes(const ModelWeights& model, const Profile& profile, const Device& device,
                              FormTable& forms);

// Whether those of the two devices are equal, whatever the model and the profile.
bool HaveEqualRoutes(const Device& a, const Device& b);

// Bytes of each module's elements in each form, by module and form; 0 in those of other types of modules.
std::vector<std::vector<int64_t>> BytesInForms(const ModelWeights& model, const FormTable& forms);

}  // namespace ditserve

#endif  // DITSERVE_CORE_PLACEMENT_ROUTE_MAKER_H_
