#ifndef DITSERVE_SERVER_RPC_TENSOR_CODEC_H_
#define DITSERVE_SERVER_RPC_TENSOR_CODEC_H_

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/base/dtype.h"
#include "ditserve/v1/tensor.pb.h"

namespace ditserve {

// PyTorch's name: "bfloat16"; "unspecified" for anything that is no dtype of the API.
absl::string_view Name(v1::Dtype dtype);

// The API's word for a dtype; DTYPE_UNSPECIFIED for one it has no word for.
v1::Dtype ToProto(DType dtype);

// "[1, 16, 8, 8]".
std::string ShapeText(c10::IntArrayRef shape);

// The message as a CPU tensor that views its bytes: `tensor` must outlive it and nothing may write to it. Bytes that
// are not aligned for the dtype are copied. Nothing is allocated before shape and size are found to agree. The bytes
// of a bool tensor may be other than 0 and 1: read them as bytes.
//
// Errors: InvalidArgument that begins with `field` and says what was found and what was expected.
absl::StatusOr<at::Tensor> ViewTensor(const v1::Tensor& tensor, absl::string_view field);

// Writes dtype, shape and elements of a CPU tensor. Errors: Internal for a dtype the API has no word for.
absl::Status EncodeTensor(const at::Tensor& tensor, v1::Tensor& proto);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_TENSOR_CODEC_H_
