#ifndef DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_PATH_H_
#define DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_PATH_H_

#include <vector>

#include "absl/types/span.h"
#include "core/base/dtype.h"
#include "core/placement/copy_form.h"
#include "core/storage/model_weights.h"

namespace ditserve {

// What is done to elements: the dtypes that they go through, from the one in which they are read to the one in which
// they are written. Of none: they are read from the checkpoint.
using TransferStep = std::vector<DType>;

// How the parameters of a module come into copies, each made from the one before it.
struct TransferPath {
  bool read_in_place = false;  // From the checkpoint straight into the first target, whose steps are not taken.
  std::vector<std::vector<TransferStep>> steps;  // By target and parameter.
};

// `source`: null: the checkpoint. `as_stored`: as the first target's layout.
TransferPath PathOf(const ModelWeights::Module& module, const CopyForm* source,
                    absl::Span<const CopyForm* const> targets, bool as_stored);

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_PATH_H_
