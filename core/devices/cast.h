#ifndef DITSERVE_CORE_DEVICES_CAST_H_
#define DITSERVE_CORE_DEVICES_CAST_H_

#include <cstdint>

#include "absl/types/span.h"
#include "core/base/dtype.h"

namespace ditserve {

// Converts `count` weight elements from dtype `from` at `source` to dtype `to` at `target`, rounding through each
// dtype of `through` on the way, bit for bit as a chain of PyTorch 2.13 `.to(dtype)` calls does: to the nearest, ties
// to even; what is too large becomes infinity, in float8_e4m3fn 448 (NaN before PyTorch 2.13). NaN stays NaN; its bits
// are those of PyTorch's 16-bit conversions on AVX2 (they depend on the processor there, not here). The two buffers
// must not overlap; neither needs alignment. Thread-safe.
void Cast(const void* source, DType from, absl::Span<const DType> through, void* target, DType to, int64_t count);

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_CAST_H_
