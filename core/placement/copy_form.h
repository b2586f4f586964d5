#ifndef DITSERVE_CORE_PLACEMENT_COPY_FORM_H_
#define DITSERVE_CORE_PLACEMENT_COPY_FORM_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "core/placement/encoding.h"
#include "core/storage/model_weights.h"

namespace ditserve {

// What a copy of a module holds, of each parameter.
struct CopyForm {
  std::vector<Encoding> encodings;  // In the order of ModuleSpec::parameters.

  friend bool operator==(const CopyForm&, const CopyForm&) = default;
};

// Where each parameter stands in a copy's memory: at multiples of 256 bytes, but as stored.
struct CopyLayout {
  struct Place {
    int64_t offset_bytes;                        // Of its elements.
    std::optional<int64_t> scales_offset_bytes;  // Nullopt: it has none.
  };
  absl::InlinedVector<Place, 2> places;  // Of a weight and perhaps a bias. In the order of ModuleSpec::parameters.
  int64_t size_bytes = 0;  // A multiple of 4096: what the copy really takes, scales and rounding included.
  // Each run of parameters lies as in its shard, at the same place of a page: it can be read straight into the copy.
  // Never in a device's own memory. Parameters then lie at multiples of their elements' size and no more.
  bool as_stored = false;
};

// The layout of a copy of `module` in `form`. `in_host_memory`: in memory that files can be read into.
CopyLayout LayoutOf(const ModelWeights::Module& module, const CopyForm& form, bool in_host_memory);

}  // namespace ditserve

#endif  // DITSERVE_CORE_PLACEMENT_COPY_FORM_H_
