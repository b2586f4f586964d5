#include "core/cast.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace ditserve {
namespace {

// Conversions go through float32 in blocks that stay in the first-level cache. The loops are written so that the
// compiler vectorizes them, once for each of these instruction sets; the processor's own is chosen at run time.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
#define DITSERVE_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DITSERVE_MULTIVERSION
#endif

constexpr int64_t kBlock = 2048;

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// --- to float32, which holds every value of the others

DITSERVE_MULTIVERSION
void BFloat16ToFloat32(const uint16_t* source, uint32_t* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) target[i] = static_cast<uint32_t>(source[i]) << 16;
}

float Float16ToFloat32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0x1f) return FromBits(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return FromBits(sign | (exponent + 112) << 23 | mantissa << 13);
  // A denormal is a multiple of 2^-24.
  return FromBits(sign | Bits(static_cast<float>(mantissa) * 0x1p-24f));
}

float Float8ToFloat32(uint8_t byte) {
  const uint32_t sign = static_cast<uint32_t>(byte & 0x80u) << 24;
  const uint32_t exponent = (byte >> 3) & 0xfu;
  const uint32_t mantissa = byte & 0x7u;
  if ((byte & 0x7fu) == 0x7f) return FromBits(sign | 0x7ff00000u);  // The only NaN.
  if (exponent != 0) return FromBits(sign | (exponent + 120) << 23 | mantissa << 20);
  return FromBits(sign | Bits(static_cast<float>(mantissa) * 0x1p-9f));
}

const std::array<float, 256>& Float8Table() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> values;
    for (int i = 0; i < 256; ++i) values[i] = Float8ToFloat32(static_cast<uint8_t>(i));
    return values;
  }();
  return table;
}

// --- from float32, to the nearest, ties to even

DITSERVE_MULTIVERSION
void Float32ToBFloat16(const uint32_t* source, uint16_t* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = source[i];
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    target[i] = static_cast<uint16_t>(nan ? 0x7fc0u : rounded);  // PyTorch's NaN.
  }
}

uint16_t Float32ToFloat16(float value) {
  const uint32_t bits = Bits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;   // PyTorch's NaN.
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // Rounds past 65504.
  if (magnitude < 0x38800000u) {
    // Denormal: adding 0.5 leaves the multiple of 2^-24, rounded, in the low bits.
    return sign | static_cast<uint16_t>(Bits(FromBits(magnitude) + 0.5f) - Bits(0.5f));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return sign | static_cast<uint16_t>((rounded - (112u << 23)) >> 13);
}

uint8_t Float32ToFloat8(float value) {
  const uint32_t bits = Bits(value);
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x43f00000u) return sign | 0x7fu;  // 480 and more, and NaN: there is no infinity.
  if (magnitude < 0x3c800000u) {
    // Denormal: adding 2^14 leaves the multiple of 2^-9, rounded, in the low bits.
    return sign | static_cast<uint8_t>(Bits(FromBits(magnitude) + 0x1p14f) - Bits(0x1p14f));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return sign | static_cast<uint8_t>((rounded - (120u << 23)) >> 20);
}

template <typename From, typename To, typename Function>
void ForEach(const void* source, void* target, int64_t count, Function function) {
  const From* const from = static_cast<const From*>(source);
  To* const to = static_cast<To*>(target);
  for (int64_t i = 0; i < count; ++i) to[i] = function(from[i]);
}

void ToFloat32(const void* source, DType from, float* target, int64_t count) {
  switch (from) {
    case DType::kBFloat16:
      return BFloat16ToFloat32(static_cast<const uint16_t*>(source), reinterpret_cast<uint32_t*>(target), count);
    case DType::kFloat16:
      return ForEach<uint16_t, float>(source, target, count, Float16ToFloat32);
    case DType::kFloat8E4M3: {
      const std::array<float, 256>& table = Float8Table();
      return ForEach<uint8_t, float>(source, target, count, [&](uint8_t byte) { return table[byte]; });
    }
    default:
      std::memcpy(target, source, count * sizeof(float));
  }
}

void FromFloat32(const float* source, void* target, DType to, int64_t count) {
  switch (to) {
    case DType::kBFloat16:
      return Float32ToBFloat16(reinterpret_cast<const uint32_t*>(source), static_cast<uint16_t*>(target), count);
    case DType::kFloat16:
      return ForEach<float, uint16_t>(source, target, count, Float32ToFloat16);
    case DType::kFloat8E4M3:
      return ForEach<float, uint8_t>(source, target, count, Float32ToFloat8);
    default:
      std::memcpy(target, source, count * sizeof(float));
  }
}

// Rounds float32 values to those of `dtype`.
void Round(float* values, DType dtype, int64_t count) {
  std::array<uint16_t, kBlock> rounded;
  FromFloat32(values, rounded.data(), dtype, count);
  ToFloat32(rounded.data(), dtype, values, count);
}

}  // namespace

void Cast(const void* source, DType from, absl::Span<const DType> through, void* target, DType to, int64_t count) {
  if (from == to && through.empty()) {
    std::memcpy(target, source, count * SizeOf(from));
    return;
  }
  if (through.empty() && to == DType::kFloat32 && reinterpret_cast<uintptr_t>(source) % SizeOf(from) == 0) {
    return ToFloat32(source, from, static_cast<float*>(target), count);
  }
  alignas(64) std::array<float, kBlock> values;
  alignas(64) std::array<std::byte, kBlock * sizeof(float)> aligned;  // Stored data may be misaligned.
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t length = std::min(kBlock, count - begin);
    std::memcpy(aligned.data(), static_cast<const std::byte*>(source) + begin * SizeOf(from), length * SizeOf(from));
    ToFloat32(aligned.data(), from, values.data(), length);
    for (const DType dtype : through) {
      if (dtype != DType::kFloat32) Round(values.data(), dtype, length);
    }
    FromFloat32(values.data(), static_cast<std::byte*>(target) + begin * SizeOf(to), to, length);
  }
}

}  // namespace ditserve
