#ifndef DITSERVE_SERVER_RPC_TENSOR_FIELDS_H_
#define DITSERVE_SERVER_RPC_TENSOR_FIELDS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "ditserve/v1/tensor.pb.h"

namespace ditserve {

// Tensors of requests, field by field. Errors: InvalidArgument of the field, and what was found and expected.

// As ViewTensor, of float32, bfloat16 or float16.
absl::StatusOr<at::Tensor> FloatingTensor(const v1::Tensor& proto, absl::string_view field);

absl::Status CheckShape(const at::Tensor& tensor, c10::IntArrayRef expected, absl::string_view meaning,
                        absl::string_view field);
absl::Status CheckRank(const at::Tensor& tensor, int64_t rank, absl::string_view meaning, absl::string_view field);

// Of 2 or 4 bytes of floating point. Written out, because LibTorch's kernels would start a team of threads on each of
// gRPC's.
absl::Status CheckFinite(const at::Tensor& tensor, absl::string_view field);

// Shape [batch, T, width].
absl::StatusOr<at::Tensor> DecodePrompt(const v1::Tensor& proto, int64_t batch, int64_t width, absl::string_view field);

// Which tokens count: shape [batch, tokens] bool, in each row one at least.
absl::StatusOr<at::Tensor> DecodeMask(const v1::Tensor& proto, int64_t batch, int64_t tokens, absl::string_view field);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_TENSOR_FIELDS_H_
