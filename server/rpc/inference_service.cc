#include "server/rpc/inference_service.h"

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/inference_decoder.h"
#include "server/rpc/request_decoder.h"

namespace ditserve {
namespace {

constexpr char kServerName[] = "ditserve";
constexpr int64_t kAnyLength = -1;

void Add(const char* name, const char* datatype, const std::vector<int64_t>& shape,
         google::protobuf::RepeatedPtrField<inference::ModelMetadataResponse::TensorMetadata>& tensors) {
  inference::ModelMetadataResponse::TensorMetadata& tensor = *tensors.Add();
  tensor.set_name(name);
  tensor.set_datatype(datatype);
  tensor.mutable_shape()->Add(shape.begin(), shape.end());
}

// The request's own account, in the units and by the names of ForwardStats.
void EncodeAccount(const v1::ForwardStats& stats, inference::ModelInferResponse& response) {
  auto& parameters = *response.mutable_parameters();
  for (const auto& [name, duration] : {std::pair("queue", &stats.queue()),
                                       {"stall", &stats.stall()},
                                       {"compute", &stats.compute()},
                                       {"total", &stats.total()}}) {
    parameters[absl::StrCat(name, "_seconds")].set_double_param(static_cast<double>(duration->seconds()) +
                                                                1e-9 * duration->nanos());
  }
  parameters["disk_read_bytes"].set_int64_param(stats.disk_read_bytes());
  parameters["device_copy_bytes"].set_int64_param(stats.device_copy_bytes());
  parameters["peak_device_bytes"].set_int64_param(stats.peak_device_bytes());
  parameters["riders"].set_int64_param(stats.riders());
  parameters["non_finite_elements"].set_int64_param(stats.non_finite_elements());
}

absl::Status EncodeInference(ForwardResult result, const OutputForm& form, inference::ModelInferResponse& response) {
  v1::ForwardResponse forward;
  DITSERVE_RETURN_IF_ERROR(EncodeResponse(std::move(result), form, forward));
  inference::ModelInferResponse::InferOutputTensor& output = *response.add_outputs();
  output.set_name("output");
  output.set_datatype(std::string(InferenceDatatype(forward.output().dtype())));
  *output.mutable_shape() = forward.output().shape();
  response.add_raw_output_contents()->swap(*forward.mutable_output()->mutable_data());
  EncodeAccount(forward.stats(), response);
  return absl::OkStatus();
}

}  // namespace

grpc::ServerUnaryReactor* InferenceService::ServerLive(grpc::CallbackServerContext* context,
                                                       const inference::ServerLiveRequest*,
                                                       inference::ServerLiveResponse* response) {
  response->set_live(health_.alive());
  return FinishCall(context);
}

grpc::ServerUnaryReactor* InferenceService::ServerReady(grpc::CallbackServerContext* context,
                                                        const inference::ServerReadyRequest*,
                                                        inference::ServerReadyResponse* response) {
  response->set_ready(health_.ready());
  return FinishCall(context);
}

grpc::ServerUnaryReactor* InferenceService::ModelReady(grpc::CallbackServerContext* context,
                                                       const inference::ModelReadyRequest* request,
                                                       inference::ModelReadyResponse* response) {
  const absl::StatusOr<bool> ready = IsReady(*request);
  response->set_ready(ready.value_or(false));
  return FinishCall(context, ready.status());
}

absl::StatusOr<bool> InferenceService::IsReady(const inference::ModelReadyRequest& request) const {
  DITSERVE_RETURN_IF_ERROR(CheckModelVersion(request.version()));
  const absl::StatusOr<ModelInfo> model = FindModel(engine_.Models(), request.name());
  if (absl::IsUnavailable(model.status())) return false;
  if (!model.ok()) return model.status();
  return health_.ready();
}

grpc::ServerUnaryReactor* InferenceService::ServerMetadata(grpc::CallbackServerContext* context,
                                                           const inference::ServerMetadataRequest*,
                                                           inference::ServerMetadataResponse* response) {
  response->set_name(kServerName);
  response->set_version(version_);
  return FinishCall(context);
}

grpc::ServerUnaryReactor* InferenceService::ModelMetadata(grpc::CallbackServerContext* context,
                                                          const inference::ModelMetadataRequest* request,
                                                          inference::ModelMetadataResponse* response) {
  return FinishCall(context, Describe(*request, *response));
}

absl::Status InferenceService::Describe(const inference::ModelMetadataRequest& request,
                                        inference::ModelMetadataResponse& response) const {
  DITSERVE_RETURN_IF_ERROR(CheckModelVersion(request.version()));
  DITSERVE_ASSIGN_OR_RETURN(const ModelInfo model, FindModel(engine_.Models(), request.name()));
  const QwenImageDiTConfig& config = model.model->config();
  const int64_t channels = config.in_channels / (config.patch_size * config.patch_size);
  response.set_name(model.name);
  response.add_versions(std::string(kModelVersion));  // GCC 12 warns of the other way without reason.
  response.set_platform("ditserve_qwen_image_dit");
  Add("latents", "FP32", {kAnyLength, channels, kAnyLength, kAnyLength}, *response.mutable_inputs());
  Add("timestep", "FP32", {kAnyLength}, *response.mutable_inputs());
  Add("prompt_emb", "FP32", {kAnyLength, kAnyLength, config.joint_attention_dim}, *response.mutable_inputs());
  Add("prompt_emb_mask", "BOOL", {kAnyLength, kAnyLength}, *response.mutable_inputs());
  Add("output", "FP32", {kAnyLength, kAnyLength, config.in_channels}, *response.mutable_outputs());
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* InferenceService::ModelInfer(grpc::CallbackServerContext* context,
                                                       const inference::ModelInferRequest* request,
                                                       inference::ModelInferResponse* response) {
  const auto forward = std::make_shared<v1::ForwardRequest>();  // The answer keeps it.
  // gRPC made it for this call, and reads it no more; it is told as constant all the same.
  auto& own = const_cast<inference::ModelInferRequest&>(*request);
  return calls_.Serve(
      context, "ModelInfer", [&] { return Decode(own, *forward, *response); },
      [forward, response](ForwardResult result, const OutputForm& form) {
        return EncodeInference(std::move(result), form, *response);
      });
}

// The request, as one of ours, and what of its response is known before it is answered.
absl::StatusOr<const v1::ForwardRequest*> InferenceService::Decode(inference::ModelInferRequest& request,
                                                                   v1::ForwardRequest& forward,
                                                                   inference::ModelInferResponse& response) const {
  DITSERVE_ASSIGN_OR_RETURN(forward, DecodeInference(request));
  DITSERVE_ASSIGN_OR_RETURN(const ModelInfo model, FindModel(engine_.Models(), request.model_name()));
  response.set_model_name(model.name);
  response.set_model_version(kModelVersion);
  response.set_id(request.id());
  return &forward;
}

}  // namespace ditserve
