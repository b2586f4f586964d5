#ifndef DITSERVE_SERVER_RPC_REQUEST_DECODER_H_
#define DITSERVE_SERVER_RPC_REQUEST_DECODER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "ditserve/v1/denoise_service.pb.h"
#include "ditserve/v1/model_service.pb.h"
#include "ditserve/v1/transformer_service.pb.h"
#include "server/engine/engine.h"
#include "server/engine/profile_catalogue.h"

namespace ditserve {

// Largest request that is served.
struct RequestLimits {
  int64_t max_batch = 16;
  int64_t max_side = 4096;  // Pixels, of height and of width.
};

// A request that was found valid.
struct DecodedForward {
  ForwardCall call;  // Its inputs view the request's bytes; no deadline is set.
  const QwenImageDiT* model = nullptr;
  v1::OutputLayout layout = v1::OUTPUT_LAYOUT_PATCHES;
};

// The model that `name` asks for; "" is the only one there is.
//
// Errors: NotFound that names those there are; InvalidArgument for "" where there are several; Unavailable while it is
// loading.
absl::StatusOr<ModelInfo> FindModel(const std::vector<ModelInfo>& models, const std::string& name);

// Checks every field of a request and makes a call of it.
//
// Thread safety: immutable. Ownership: `catalogue` must outlive it.
// Errors begin with the field's path and say what was found and what is expected: InvalidArgument; NotFound (model,
// profile); FailedPrecondition (a device this server does not compute on); Unavailable (model still loading).
class RequestDecoder {
 public:
  RequestDecoder(const RequestLimits& limits, const ProfileCatalogue* catalogue)
      : limits_(limits), catalogue_(*catalogue) {}

  // `request` must outlive the call's inputs.
  absl::StatusOr<DecodedForward> Decode(const v1::ForwardRequest& request, const std::vector<ModelInfo>& models) const;

  // Likewise. Nothing large that a message holds, or asks for, is copied or made before the loop is admitted: on a
  // device that computes in host memory, to memory that is booked for it.
  absl::StatusOr<DecodedForward> DecodeDenoise(const v1::DenoiseRequest& request,
                                               const std::vector<ModelInfo>& models) const;

  // A PlanRequest, likewise; any configured profile may be offered in its place.
  absl::StatusOr<PlanCall> DecodePlan(const v1::PlanRequest& request, const std::vector<ModelInfo>& models) const;

 private:
  absl::StatusOr<ForwardInputs> DecodeInputs(const v1::ForwardRequest& request, const QwenImageDiTConfig& config) const;
  // Of a ForwardRequest or a DenoiseRequest.
  template <typename Request>
  absl::StatusOr<at::Tensor> DecodeLatents(const Request& request, const QwenImageDiTConfig& config) const;
  // Of any of the three.
  template <typename Request>
  absl::Status DecodeRide(const Request& request, const ModelInfo& model, DecodedForward& decoded) const;
  absl::Status CheckBatch(int64_t batch, absl::string_view field) const;
  template <typename Request>
  absl::StatusOr<Profile> DecodeProfile(const Request& request) const;
  absl::StatusOr<Profile> ConfiguredProfile(const std::string& name) const;
  absl::Status CheckSide(int64_t pixels, absl::string_view field) const;

  const RequestLimits limits_;
  const ProfileCatalogue& catalogue_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_REQUEST_DECODER_H_
