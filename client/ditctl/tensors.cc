#include "client/ditctl/tensors.h"

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/devices/cast.h"
#include "models/seeded_values.h"

namespace ditserve::ditctl {
namespace {

constexpr std::array<std::pair<v1::DType, DType>, 8> kDTypes = {{{v1::DTYPE_FLOAT32, DType::kFloat32},
                                                                 {v1::DTYPE_BFLOAT16, DType::kBFloat16},
                                                                 {v1::DTYPE_FLOAT16, DType::kFloat16},
                                                                 {v1::DTYPE_FLOAT8_E4M3FN, DType::kFloat8E4M3},
                                                                 {v1::DTYPE_INT64, DType::kInt64},
                                                                 {v1::DTYPE_INT32, DType::kInt32},
                                                                 {v1::DTYPE_UINT8, DType::kUint8},
                                                                 {v1::DTYPE_BOOL, DType::kBool}}};

v1::Tensor MakeTensor(const std::vector<int64_t>& shape, DType dtype, const std::vector<float>& values) {
  v1::Tensor tensor;
  tensor.set_dtype(ToProto(dtype));
  tensor.mutable_shape()->Add(shape.begin(), shape.end());
  tensor.mutable_data()->resize(values.size() * SizeOf(dtype));
  Cast(values.data(), DType::kFloat32, {}, tensor.mutable_data()->data(), dtype, static_cast<int64_t>(values.size()));
  return tensor;
}

int64_t Count(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t length : shape) count *= length;
  return count;
}

}  // namespace

std::optional<DType> FromProto(v1::DType dtype) {
  for (const auto& [proto, ours] : kDTypes) {
    if (proto == dtype) return ours;
  }
  return std::nullopt;
}

v1::DType ToProto(DType dtype) {
  for (const auto& [proto, ours] : kDTypes) {
    if (ours == dtype) return proto;
  }
  return v1::DTYPE_UNSPECIFIED;
}

std::optional<int64_t> BytesOf(const v1::Tensor& tensor) {
  const std::optional<DType> dtype = FromProto(tensor.dtype());
  if (!dtype) return std::nullopt;
  int64_t bytes = SizeOf(*dtype);
  for (const int64_t length : tensor.shape()) {
    if (length < 0 || __builtin_mul_overflow(bytes, length, &bytes)) return std::nullopt;
  }
  return bytes;
}

absl::Status CheckFloating(const v1::Tensor& tensor) {
  const std::optional<DType> dtype = FromProto(tensor.dtype());
  if (!dtype || !IsWeightDType(*dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype ", static_cast<int>(tensor.dtype()), ", expected one of floating point"));
  }
  const std::optional<int64_t> expected = BytesOf(tensor);
  if (expected && static_cast<size_t>(*expected) == tensor.data().size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("holds ", tensor.data().size(), " bytes, its shape and dtype take ",
                                                 expected ? absl::StrCat(*expected) : std::string("more than 2^63")));
}

v1::Tensor ConvertTo(const v1::Tensor& tensor, DType dtype) {
  return MakeTensor({tensor.shape().begin(), tensor.shape().end()}, dtype, Floats(tensor));
}

std::vector<float> Floats(const v1::Tensor& tensor) {
  const DType dtype = *FromProto(tensor.dtype());
  std::vector<float> values(tensor.data().size() / SizeOf(dtype));
  Cast(tensor.data().data(), dtype, {}, values.data(), DType::kFloat32, static_cast<int64_t>(values.size()));
  return values;
}

v1::Tensor SeededTensor(uint64_t seed, const std::string& name, const std::vector<int64_t>& shape, DType dtype) {
  std::vector<float> values(static_cast<size_t>(Count(shape)));
  FillSeeded(seed, name, 0, static_cast<int64_t>(values.size()), 0.0f, 1.0f, values.data());
  return MakeTensor(shape, dtype, values);
}

v1::Tensor ConstantTensor(float value, const std::vector<int64_t>& shape, DType dtype) {
  return MakeTensor(shape, dtype, std::vector<float>(static_cast<size_t>(Count(shape)), value));
}

}  // namespace ditserve::ditctl
