#include "core/placement/encoding.h"

#include <functional>
#include <numeric>

namespace ditserve {

int64_t ScaleCount(const Scales& scales, const std::vector<int64_t>& shape) {
  if (scales.granularity == Granularity::kTensor) return 1;
  const int64_t rows = shape.empty() ? 1 : shape.front();
  if (scales.granularity == Granularity::kRow) return rows;
  const int64_t row_elements =
      shape.empty() ? 1 : std::accumulate(shape.begin() + 1, shape.end(), int64_t{1}, std::multiplies<>());
  return rows * ((row_elements + scales.block_elements - 1) / scales.block_elements);
}

bool LeadsTo(const Encoding& from, const Encoding& to) {
  return !from.scales && !to.scales && from.values.IsPrefixOf(to.values);
}

}  // namespace ditserve
