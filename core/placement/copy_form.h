#ifndef DITSERVE_CORE_PLACEMENT_COPY_FORM_H_
#define DITSERVE_CORE_PLACEMENT_COPY_FORM_H_

#include <cstdint>
#include <vector>

#include "core/base/dtype.h"
#include "core/placement/precision.h"
#include "core/storage/model_weights.h"

namespace ditserve {

// What a copy of a module holds: the values of each parameter, and the dtype they are represented in.
struct CopyForm {
  std::vector<Precision> precisions;  // In the order of ModuleSpec::parameters.
  DType dtype;

  friend bool operator==(const CopyForm&, const CopyForm&) = default;
};

// Where each parameter stands in a copy's memory: at a multiple of 256 bytes, but as stored.
struct CopyLayout {
  std::vector<int64_t> offsets_bytes;
  int64_t size_bytes = 0;  // A multiple of 4096: what the copy really takes.
  // Each run of parameters lies as in its shard, at the same place of a page: it can be read straight into the copy.
  // Never in a device's own memory. Parameters then lie at multiples of their elements' size and no more.
  bool as_stored = false;
};

// The layout of a copy of `module` in `dtype`. `in_host_memory`: in memory that files can be read into.
CopyLayout LayoutOf(const ModelWeights::Module& module, DType dtype, bool in_host_memory);

}  // namespace ditserve

#endif  // DITSERVE_CORE_PLACEMENT_COPY_FORM_H_
