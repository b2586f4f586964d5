#ifndef DITSERVE_CORE_DEVICES_FLOAT8_ROWS_H_
#define DITSERVE_CORE_DEVICES_FLOAT8_ROWS_H_

#include <cstdint>

#include "core/devices/cast_bits.h"

namespace ditserve {

// Rows of bfloat16 as DiffSynth-Studio 2.1.12 makes them float8_e4m3fn to multiply them (core/vram/layers.py,
// fp8_linear): each is divided by a scale of its own, which is its largest magnitude over 448, in bfloat16, but 1 at
// least: rows are made to fit and never made use of all of the range. For processors and GPUs the same arithmetic, so
// that both give the same bits, but for the sign of NaN. A row with a NaN is NaN; of one with an infinity that is NaN,
// and the rest is 0.
namespace float8_rows {

// `magnitude`: the largest of the row, bits of a bfloat16 without its sign. Of NaN they are larger than any other.
DITSERVE_HOST_DEVICE inline float Scale(uint16_t magnitude) {
  using cast_bits::BFloat16;
  const float quotient = cast_bits::FromBits(BFloat16::Decode(magnitude)) / 448.0f;
  const float rounded = cast_bits::FromBits(BFloat16::Decode(BFloat16::Encode(cast_bits::ToBits(quotient))));
  return rounded < 1.0f ? 1.0f : rounded;
}

DITSERVE_HOST_DEVICE inline uint8_t Quantize(uint16_t element, float scale) {
  const float value = cast_bits::FromBits(cast_bits::BFloat16::Decode(element));
  return cast_bits::Float8E4M3::Encode(cast_bits::ToBits(value / scale));
}

DITSERVE_HOST_DEVICE inline uint16_t Magnitude(uint16_t element) { return element & 0x7fffu; }

}  // namespace float8_rows

// Writes a row of `count` bfloat16 as float8, and returns its scale. Thread-safe.
float QuantizeRow(const uint16_t* row, int64_t count, uint8_t* quantized);

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_FLOAT8_ROWS_H_
