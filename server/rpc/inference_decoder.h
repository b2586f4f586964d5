#ifndef DITSERVE_SERVER_RPC_INFERENCE_DECODER_H_
#define DITSERVE_SERVER_RPC_INFERENCE_DECODER_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "ditserve/v1/tensor.pb.h"
#include "ditserve/v1/transformer_service.pb.h"
#include "inference/grpc_service.pb.h"

namespace ditserve {

// The only version of each model.
inline constexpr char kModelVersion[] = "1";

// "FP32", "BF16"; empty for a dtype that the Open Inference Protocol has no word for.
absl::string_view InferenceDatatype(v1::Dtype dtype);

// Errors: NotFound for another version than kModelVersion or "".
absl::Status CheckModelVersion(const std::string& version);

// A request of the Open Inference Protocol, version 2, as one of ours: inputs are tensors by the names of
// ForwardRequest's fields, `parameters` the rest of its fields. Height and width follow from the latents where they are
// not given. The tensors' bytes are taken out of `request`, so that they are there once. Values are left to
// RequestDecoder to check. Errors: InvalidArgument that names the input or parameter ("parameters.join"); as
// CheckModelVersion.
absl::StatusOr<v1::ForwardRequest> DecodeInference(inference::ModelInferRequest& request);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_INFERENCE_DECODER_H_
