#ifndef DITSERVE_CORE_PLACEMENT_ENCODING_H_
#define DITSERVE_CORE_PLACEMENT_ENCODING_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "core/base/dtype.h"
#include "core/placement/precision.h"

namespace ditserve {

// Which elements of a parameter have one scale in common. A row is what has the same first index: what one output
// channel of a Linear is computed from.
enum class Granularity : uint8_t { kTensor, kRow, kBlock };

// What elements are multiplied with to be values, row-major: [], [rows] or [rows, blocks of a row].
struct Scales {
  Granularity granularity;
  DType dtype;
  int64_t block_elements = 0;  // Of kBlock: neighbours in a row. Its last block may be shorter.

  friend bool operator==(const Scales&, const Scales&) = default;
};

// How many scales a parameter of this shape has.
int64_t ScaleCount(const Scales& scales, const std::vector<int64_t>& shape);

// How a copy holds one parameter: which values, and what stands for them.
//
// Built are scaled encodings' keys, sizes and layout (core/placement/copy_form.h), for float8 and int8. Nothing writes,
// moves or reads scales yet. Formats that take more than one level of scales, zero points, or elements of less than a
// byte, do not fit.
struct Encoding {
  Precision values;
  DType dtype;                                  // Of elements.
  std::optional<Scales> scales = std::nullopt;  // Nullopt: elements are the values.

  friend bool operator==(const Encoding&, const Encoding&) = default;
};

// Whether what `from` holds can be made into what `to` holds: by rounding on. Scaled encodings neither lead anywhere
// nor are led to, not even by their equals: quantising is no rounding, and transfers leave scales behind.
bool LeadsTo(const Encoding& from, const Encoding& to);

}  // namespace ditserve

#endif  // DITSERVE_CORE_PLACEMENT_ENCODING_H_
