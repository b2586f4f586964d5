#ifndef DITSERVE_CLIENT_DITCTL_TENSORS_H_
#define DITSERVE_CLIENT_DITCTL_TENSORS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/dtype.h"
#include "ditserve/v1/tensor.pb.h"

namespace ditserve::ditctl {

// The API's dtype and ours; nullopt where the other has none.
std::optional<DType> FromProto(v1::DType dtype);
v1::DType ToProto(DType dtype);  // DTYPE_UNSPECIFIED where the API has none.

// Bytes that shape and dtype take; nullopt if they are more than 2^63 - 1 or the dtype is unknown.
std::optional<int64_t> BytesOf(const v1::Tensor& tensor);

// A floating point tensor in another floating dtype.
v1::Tensor ConvertTo(const v1::Tensor& tensor, DType dtype);

// Elements of a floating point tensor.
std::vector<float> Floats(const v1::Tensor& tensor);

// Standard normal values that depend on seed and name alone.
v1::Tensor SeededTensor(uint64_t seed, const std::string& name, const std::vector<int64_t>& shape, DType dtype);

// One value in every place.
v1::Tensor ConstantTensor(float value, const std::vector<int64_t>& shape, DType dtype);

// Reads one tensor from .npy, or tensor `name` from .safetensors; NotFound if a .safetensors file has none of it.
absl::StatusOr<v1::Tensor> ReadTensor(const std::string& path, const std::string& name);

// Writes to .npy or .safetensors (as tensor `name`), through a file beside it that is renamed when it is whole.
absl::Status WriteTensor(const std::string& path, const std::string& name, const v1::Tensor& tensor);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_TENSORS_H_
