#ifndef DITSERVE_CLIENT_DITCTL_TENSORS_H_
#define DITSERVE_CLIENT_DITCTL_TENSORS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/base/dtype.h"
#include "ditserve/v1/tensor.pb.h"

namespace ditserve::ditctl {

// No message can be larger; protobuf counts its bytes in an int.
constexpr int64_t kMaxMessageBytes = (int64_t{1} << 31) - 1;

// The API's dtype and ours; nullopt where the other has none.
std::optional<DType> FromProto(v1::Dtype dtype);
v1::Dtype ToProto(DType dtype);  // DTYPE_UNSPECIFIED where the API has none.

// Bytes that shape and dtype take; nullopt if they are more than 2^63 - 1 or the dtype is unknown.
std::optional<int64_t> BytesOf(const v1::Tensor& tensor);

// Whether the tensor is of floating point and holds as many bytes as its shape and dtype take.
// Errors: InvalidArgument that says what was found.
absl::Status CheckFloating(const v1::Tensor& tensor);

// A tensor that CheckFloating accepts, in another floating dtype.
v1::Tensor ConvertTo(const v1::Tensor& tensor, DType dtype);

// Elements of a tensor that CheckFloating accepts.
std::vector<float> Floats(const v1::Tensor& tensor);

// Roughly standard normal values that depend on seed and name alone, the same bits on every machine.
v1::Tensor SeededTensor(uint64_t seed, const std::string& name, const std::vector<int64_t>& shape, DType dtype);

// One value in every place.
v1::Tensor ConstantTensor(float value, const std::vector<int64_t>& shape, DType dtype);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_TENSORS_H_
