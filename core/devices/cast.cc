#include "core/devices/cast.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>

namespace ditserve {
namespace {

// The loops are written so that the compiler vectorizes them, once for each of these instruction sets; the
// processor's own is chosen at run time. (The choice runs before a sanitizer is set up, and clang 14 has no clones.)
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
#define DITSERVE_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DITSERVE_MULTIVERSION
#endif

// Elements of a chain's intermediate steps; they stay in the first-level cache.
constexpr int64_t kBlock = 2048;

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint32_t ToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Weight dtypes as conversions from and to the bits of float32, which holds every value of the others. Rounding is to
// the nearest, ties to even. All cases are computed and one is chosen, so that there is nothing to branch on.
struct Float32 {
  using Element = uint32_t;
  static uint32_t Decode(uint32_t bits) { return bits; }
  static uint32_t Encode(uint32_t bits) { return bits; }
};

struct BFloat16 {
  using Element = uint16_t;
  static uint32_t Decode(uint16_t element) { return static_cast<uint32_t>(element) << 16; }
  static uint16_t Encode(uint32_t bits) {
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return static_cast<uint16_t>(nan ? 0x7fc0u : rounded);
  }
};

struct Float16 {
  using Element = uint16_t;
  static uint32_t Decode(uint16_t element) {
    const uint32_t sign = (element & 0x8000u) << 16;
    const uint32_t magnitude = (element & 0x7fffu) << 13;
    const uint32_t normal = magnitude + (112u << 23);
    // With an exponent put before it, a denormal is 2^-14 too large.
    const uint32_t denormal = ToBits(FromBits(magnitude + (113u << 23)) - 0x1p-14f);
    const uint32_t infinity = magnitude | 0x7f800000u;
    const uint32_t nan = infinity | 0x400000u;
    const uint32_t finite = magnitude < 0x00800000u ? denormal : normal;
    return sign | (magnitude < 0x0f800000u ? finite : magnitude > 0x0f800000u ? nan : infinity);
  }
  static uint16_t Encode(uint32_t bits) {
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 0.5 leaves the multiple of 2^-24, rounded, in the low bits.
    const uint32_t denormal = ToBits(FromBits(magnitude) + 0.5f) - ToBits(0.5f);
    const uint32_t finite = magnitude < 0x38800000u ? denormal : normal;
    const uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    const uint32_t special = magnitude > 0x7f800000u ? nan : 0x7c00u;
    return static_cast<uint16_t>(sign | (magnitude < 0x477ff000u ? finite : special));  // 65520 rounds to infinity.
  }
};

struct Float8E4M3 {
  using Element = uint8_t;
  static uint32_t Decode(uint8_t element) {
    const uint32_t sign = (element & 0x80u) << 24;
    const uint32_t magnitude = (element & 0x7fu) << 20;
    // With an exponent put before it, a denormal is 2^-6 too large.
    const uint32_t denormal = ToBits(FromBits(magnitude + (121u << 23)) - 0x1p-6f);
    const uint32_t finite = magnitude < 0x00800000u ? denormal : magnitude + (120u << 23);
    return sign | (magnitude == 0x07f00000u ? 0x7ff00000u : finite);  // There is no infinity, and one NaN.
  }
  static uint8_t Encode(uint32_t bits) {
    const uint32_t sign = (bits >> 24) & 0x80u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - (120u << 23) + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
    // Adding 2^14 leaves the multiple of 2^-9, rounded, in the low bits.
    const uint32_t denormal = ToBits(FromBits(magnitude) + 0x1p14f) - ToBits(0x1p14f);
    const uint32_t finite = magnitude < 0x3c800000u ? denormal : normal;
    // There is no infinity: what is too large, infinities too, becomes 448.
    const uint32_t largest = magnitude > 0x7f800000u ? 0x7fu : 0x7eu;
    return static_cast<uint8_t>(sign | (magnitude < 0x43e80000u ? finite : largest));
  }
};

template <typename From, typename To>
DITSERVE_MULTIVERSION void Convert(const std::byte* __restrict source, std::byte* __restrict target, int64_t count) {
  using Source = typename From::Element;
  using Target = typename To::Element;
  for (int64_t i = 0; i < count; ++i) {
    Source element;  // Copied byte by byte: neither side need be aligned.
    std::memcpy(&element, source + i * sizeof(Source), sizeof(Source));
    const Target converted = To::Encode(From::Decode(element));
    std::memcpy(target + i * sizeof(Target), &converted, sizeof(Target));
  }
}

using Conversion = void (*)(const std::byte*, std::byte*, int64_t);

template <typename From>
Conversion ConversionTo(DType to) {
  switch (to) {
    case DType::kFloat8E4M3:
      return Convert<From, Float8E4M3>;
    case DType::kFloat16:
      return Convert<From, Float16>;
    case DType::kBFloat16:
      return Convert<From, BFloat16>;
    default:
      return Convert<From, Float32>;
  }
}

Conversion ConversionOf(DType from, DType to) {
  switch (from) {
    case DType::kFloat8E4M3:
      return ConversionTo<Float8E4M3>(to);
    case DType::kFloat16:
      return ConversionTo<Float16>(to);
    case DType::kBFloat16:
      return ConversionTo<BFloat16>(to);
    default:
      return ConversionTo<Float32>(to);
  }
}

void ConvertOnce(const std::byte* source, DType from, std::byte* target, DType to, int64_t count) {
  if (from == to) {
    if (count > 0) std::memcpy(target, source, static_cast<size_t>(count * SizeOf(from)));
    return;
  }
  ConversionOf(from, to)(source, target, count);
}

}  // namespace

void Cast(const void* source, DType from, absl::Span<const DType> through, void* target, DType to, int64_t count) {
  const std::byte* const input = static_cast<const std::byte*>(source);
  std::byte* const output = static_cast<std::byte*>(target);
  if (through.empty()) return ConvertOnce(input, from, output, to, count);
  alignas(64) std::array<std::byte, kBlock * sizeof(float)> scratch[2];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t length = std::min(kBlock, count - begin);
    const std::byte* step = input + begin * SizeOf(from);
    DType dtype = from;
    for (size_t i = 0; i < through.size(); ++i) {
      std::byte* const next = scratch[i % 2].data();
      ConvertOnce(step, dtype, next, through[i], length);
      step = next;
      dtype = through[i];
    }
    ConvertOnce(step, dtype, output + begin * SizeOf(to), to, length);
  }
}

}  // namespace ditserve
