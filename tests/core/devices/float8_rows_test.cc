#include "core/devices/float8_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/devices/cast.h"

namespace ditserve {
namespace {

using cast_bits::BFloat16;
using cast_bits::FromBits;
using cast_bits::ToBits;

float ValueOf(uint16_t element) { return FromBits(BFloat16::Decode(element)); }
uint16_t BFloat16Of(float value) { return BFloat16::Encode(ToBits(value)); }

// As it stands in DiffSynth-Studio: scale_a = clamp(max(abs(x)) / 448, min=1), in bfloat16; x / (scale_a + 1e-8), in
// float32; to float8.
float ScaleOf(const std::vector<uint16_t>& row) {
  float largest = 0;
  for (const uint16_t element : row) {
    const float magnitude = std::abs(ValueOf(element));
    if (std::isnan(magnitude) || magnitude > largest) largest = magnitude;
    if (std::isnan(largest)) break;
  }
  const float scale = ValueOf(BFloat16Of(largest / 448.0f));
  return scale < 1.0f ? 1.0f : scale;
}

std::vector<uint8_t> QuantizedBy(float scale, const std::vector<uint16_t>& row) {
  std::vector<uint8_t> quantized;
  for (const uint16_t element : row) {
    const float value = ValueOf(element) / (scale + 1e-8f);
    Cast(&value, DType::kFloat32, {}, &quantized.emplace_back(), DType::kFloat8E4M3, 1);
  }
  return quantized;
}

void Check(const std::vector<uint16_t>& row) {
  std::vector<uint8_t> quantized(row.size());
  const float scale = QuantizeRow(row.data(), static_cast<int64_t>(row.size()), quantized.data());
  const float expected = ScaleOf(row);
  ASSERT_EQ(ToBits(scale), ToBits(expected)) << row[0];
  ASSERT_EQ(quantized, QuantizedBy(expected, row)) << row[0];
}

TEST(Float8RowsTest, EveryValueAsTheLargestOfItsRowIsScaledAndRoundedAsInDiffSynth) {
  for (uint32_t largest = 0; largest <= 0xffff; ++largest) {
    std::vector<uint16_t> row = {static_cast<uint16_t>(largest)};
    const float value = ValueOf(row[0]);
    for (const float part : {-1.0f, 0.99f, 0.4f, -0.013f, 1e-3f, 0.0f}) row.push_back(BFloat16Of(value * part));
    Check(row);
  }
}

TEST(Float8RowsTest, EveryValueIsRoundedUnderScalesOfEverySize) {
  for (const float largest : {1.0f, 448.0f, 449.0f, 464.0f, 1e3f, 77777.0f, 1e38f}) {
    std::vector<uint16_t> row = {BFloat16Of(largest)};
    for (uint32_t element = 0; element <= 0xffff; ++element) {
      if (std::abs(ValueOf(static_cast<uint16_t>(element))) <= largest) row.push_back(static_cast<uint16_t>(element));
    }
    Check(row);
  }
}

TEST(Float8RowsTest, ARowThatFitsIsNotScaledHoweverSmallItIs) {
  const std::vector<uint16_t> small = {BFloat16Of(0x1p-5f), BFloat16Of(-0x1p-9f), BFloat16Of(0x1p-11f)};
  std::vector<uint8_t> quantized(small.size());
  EXPECT_EQ(QuantizeRow(small.data(), 3, quantized.data()), 1.0f);
  EXPECT_EQ(quantized, (std::vector<uint8_t>{0x10, 0x81, 0x00}));
}

TEST(Float8RowsTest, WhatIsNotFiniteShows) {
  const uint16_t infinity = BFloat16Of(INFINITY), nan = BFloat16Of(NAN), one = BFloat16Of(1);
  uint8_t quantized[3];
  const uint16_t with_infinity[] = {one, infinity, one}, with_nan[] = {one, infinity, nan};
  EXPECT_TRUE(std::isinf(QuantizeRow(with_infinity, 3, quantized)));
  EXPECT_EQ(quantized[0], 0);
  EXPECT_EQ(quantized[1] & 0x7f, 0x7f);
  EXPECT_TRUE(std::isnan(QuantizeRow(with_nan, 3, quantized)));
  for (const uint8_t element : quantized) EXPECT_EQ(element & 0x7f, 0x7f);
}

}  // namespace
}  // namespace ditserve
