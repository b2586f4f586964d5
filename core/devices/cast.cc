#include "core/devices/cast.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>

#include "core/devices/cast_bits.h"
#include "core/devices/multiversion.h"

namespace ditserve {
namespace {

using cast_bits::BFloat16;
using cast_bits::Float16;
using cast_bits::Float32;
using cast_bits::Float8E4M3;

// Elements of a chain's intermediate steps; they stay in the first-level cache.
constexpr int64_t kBlock = 2048;

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
