#include "client/ditctl/tensors.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/devices/cast.h"
#include "models/seeded_values.h"

namespace ditserve::ditctl {
namespace {

// The API's names are this and PyTorch's.
constexpr absl::string_view kDTypePrefix = "DTYPE_";

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

std::optional<DType> FromProto(v1::Dtype dtype) {
  return DTypeFromName(absl::AsciiStrToLower(absl::StripPrefix(v1::Dtype_Name(dtype), kDTypePrefix)));
}

v1::Dtype ToProto(DType dtype) {
  v1::Dtype proto = v1::DTYPE_UNSPECIFIED;
  v1::Dtype_Parse(absl::StrCat(kDTypePrefix, absl::AsciiStrToUpper(Name(dtype))), &proto);
  return proto;
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
