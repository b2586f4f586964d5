#include "core/base/dtype.h"

#include <array>
#include <cstddef>

namespace ditserve {
namespace {

struct DTypeTraits {
  DType dtype;
  int64_t size_bytes;
  absl::string_view name;
  absl::string_view safetensors_name;
};

constexpr std::array<DTypeTraits, 15> kTraits = {{
    {DType::kBool, 1, "bool", "BOOL"},
    {DType::kUint8, 1, "uint8", "U8"},
    {DType::kInt8, 1, "int8", "I8"},
    {DType::kUint16, 2, "uint16", "U16"},
    {DType::kInt16, 2, "int16", "I16"},
    {DType::kUint32, 4, "uint32", "U32"},
    {DType::kInt32, 4, "int32", "I32"},
    {DType::kUint64, 8, "uint64", "U64"},
    {DType::kInt64, 8, "int64", "I64"},
    {DType::kFloat8E5M2, 1, "float8_e5m2", "F8_E5M2"},
    {DType::kFloat8E4M3, 1, "float8_e4m3fn", "F8_E4M3"},
    {DType::kFloat16, 2, "float16", "F16"},
    {DType::kBFloat16, 2, "bfloat16", "BF16"},
    {DType::kFloat32, 4, "float32", "F32"},
    {DType::kFloat64, 8, "float64", "F64"},
}};

static_assert(
    [] {
      for (size_t i = 0; i < kTraits.size(); ++i) {
        if (static_cast<size_t>(kTraits[i].dtype) != i) return false;
      }
      return true;
    }(),
    "kTraits must be in the order of DType");

const DTypeTraits& TraitsOf(DType dtype) { return kTraits[static_cast<size_t>(dtype)]; }

std::optional<DType> Find(absl::string_view DTypeTraits::*named, absl::string_view name) {
  for (const DTypeTraits& traits : kTraits) {
    if (traits.*named == name) return traits.dtype;
  }
  return std::nullopt;
}

}  // namespace

int64_t SizeOf(DType dtype) { return TraitsOf(dtype).size_bytes; }

absl::string_view Name(DType dtype) { return TraitsOf(dtype).name; }

absl::string_view SafetensorsName(DType dtype) { return TraitsOf(dtype).safetensors_name; }

std::optional<DType> DTypeFromName(absl::string_view name) { return Find(&DTypeTraits::name, name); }

std::optional<DType> DTypeFromSafetensors(absl::string_view name) { return Find(&DTypeTraits::safetensors_name, name); }

bool IsWeightDType(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16 ||
         dtype == DType::kFloat8E4M3;
}

DType ActivationDType(DType computation) { return computation == DType::kFloat8E4M3 ? DType::kBFloat16 : computation; }

bool IsLossless(DType from, DType to) {
  if (from == to || to == DType::kFloat32) return true;
  return from == DType::kFloat8E4M3;  // Its values are values of both 16-bit types.
}

}  // namespace ditserve
