#ifndef DITSERVE_CORE_DEVICES_CAST_BITS_H_
#define DITSERVE_CORE_DEVICES_CAST_BITS_H_

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DITSERVE_HOST_DEVICE __host__ __device__
#else
#define DITSERVE_HOST_DEVICE
#endif

// Weight dtypes as conversions from and to the bits of float32, which holds every value of the others: for processors
// and GPUs the same arithmetic, so that both give the same bits. Rounding is to the nearest, ties to even. All cases
// are computed and one is chosen, so that there is nothing to branch on.
namespace ditserve::cast_bits {

DITSERVE_HOST_DEVICE inline float FromBits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

DITSERVE_HOST_DEVICE inline uint32_t ToBits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct Float32 {
  using Element = uint32_t;
  DITSERVE_HOST_DEVICE static uint32_t Decode(uint32_t bits) { return bits; }
  DITSERVE_HOST_DEVICE static uint32_t Encode(uint32_t bits) { return bits; }
};

struct BFloat16 {
  using Element = uint16_t;
  DITSERVE_HOST_DEVICE static uint32_t Decode(uint16_t element) { return static_cast<uint32_t>(element) << 16; }
  DITSERVE_HOST_DEVICE static uint16_t Encode(uint32_t bits) {
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return static_cast<uint16_t>(nan ? 0x7fc0u : rounded);
  }
};

struct Float16 {
  using Element = uint16_t;
  DITSERVE_HOST_DEVICE static uint32_t Decode(uint16_t element) {
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
  DITSERVE_HOST_DEVICE static uint16_t Encode(uint32_t bits) {
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
  DITSERVE_HOST_DEVICE static uint32_t Decode(uint8_t element) {
    const uint32_t sign = (element & 0x80u) << 24;
    const uint32_t magnitude = (element & 0x7fu) << 20;
    // With an exponent put before it, a denormal is 2^-6 too large.
    const uint32_t denormal = ToBits(FromBits(magnitude + (121u << 23)) - 0x1p-6f);
    const uint32_t finite = magnitude < 0x00800000u ? denormal : magnitude + (120u << 23);
    return sign | (magnitude == 0x07f00000u ? 0x7ff00000u : finite);  // There is no infinity, and one NaN.
  }
  DITSERVE_HOST_DEVICE static uint8_t Encode(uint32_t bits) {
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

}  // namespace ditserve::cast_bits

#endif  // DITSERVE_CORE_DEVICES_CAST_BITS_H_
