#ifndef DITSERVE_SERVER_RPC_RESPONSE_ENCODER_H_
#define DITSERVE_SERVER_RPC_RESPONSE_ENCODER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "ditserve/v1/denoise_service.pb.h"
#include "ditserve/v1/transformer_service.pb.h"
#include "server/engine/engine.h"

namespace ditserve {

// How a request wants its output.
struct OutputForm {
  v1::OutputLayout layout = v1::OUTPUT_LAYOUT_PATCHES;
  int64_t height = 0;  // Pixels.
  int64_t width = 0;   // Pixels.
  const QwenImageDiT* model = nullptr;
};

// Writes output and stats; the output's memory is let go of. Errors: Internal, ResourceExhausted (no memory).
absl::Status EncodeResponse(ForwardResult result, const OutputForm& form, v1::ForwardResponse& response);

void EncodeDuration(absl::Duration duration, google::protobuf::Duration& proto);

void EncodeProgress(const ForwardProgress& progress, v1::ForwardProgress& proto);

// Of `steps` in all.
void EncodeDenoiseProgress(const ForwardProgress& progress, int64_t steps, v1::DenoiseProgress& proto);

// As EncodeResponse.
absl::Status EncodeDenoiseResult(ForwardResult result, v1::DenoiseResult& proto);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_RESPONSE_ENCODER_H_
