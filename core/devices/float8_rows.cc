#include "core/devices/float8_rows.h"

#include <algorithm>

#include "core/devices/multiversion.h"

namespace ditserve {

DITSERVE_MULTIVERSION float QuantizeRow(const uint16_t* __restrict row, int64_t count, uint8_t* __restrict quantized) {
  uint16_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, float8_rows::Magnitude(row[i]));
  const float scale = float8_rows::Scale(largest);
  for (int64_t i = 0; i < count; ++i) quantized[i] = float8_rows::Quantize(row[i], scale);
  return scale;
}

}  // namespace ditserve
