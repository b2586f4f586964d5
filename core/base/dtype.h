#ifndef DITSERVE_CORE_BASE_DTYPE_H_
#define DITSERVE_CORE_BASE_DTYPE_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace ditserve {

// An element type of a stored or computed tensor.
enum class DType : uint8_t {
  kBool,
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kUint64,
  kInt64,
  kFloat8E5M2,
  kFloat8E4M3,  // float8_e4m3fn: no infinities, largest finite value 448.
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
};

// Bytes of one element.
int64_t SizeOf(DType dtype);

// PyTorch's name: "float32", "float8_e4m3fn".
absl::string_view Name(DType dtype);
std::optional<DType> DTypeFromName(absl::string_view name);

// The safetensors name: "F32", "F8_E4M3".
absl::string_view SafetensorsName(DType dtype);
std::optional<DType> DTypeFromSafetensors(absl::string_view name);

// Whether weights may be stored or computed in it: float32, bfloat16, float16, float8_e4m3fn.
bool IsWeightDType(DType dtype);

// The dtype of activations where weights are multiplied in `computation`: the same, but bfloat16 for float8_e4m3fn.
DType ActivationDType(DType computation);

// Whether every value of weight dtype `from` is a value of weight dtype `to`.
bool IsLossless(DType from, DType to);

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_DTYPE_H_
