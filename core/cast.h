#ifndef DITSERVE_CORE_CAST_H_
#define DITSERVE_CORE_CAST_H_

#include <cstdint>

#include "absl/types/span.h"
#include "core/dtype.h"

namespace ditserve {

// Converts `count` weight elements from dtype `from` at `source` to dtype `to` at `target`, rounding through each
// dtype of `through` on the way, bit for bit as a chain of PyTorch `.to(dtype)` calls does (nearest even; float8
// overflow becomes NaN). The two buffers must not overlap; neither needs alignment. Thread-safe.
void Cast(const void* source, DType from, absl::Span<const DType> through, void* target, DType to, int64_t count);

}  // namespace ditserve

#endif  // DITSERVE_CORE_CAST_H_
