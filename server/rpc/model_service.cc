#include "server/rpc/model_service.h"

#include <string>
#include <vector>

#include "core/base/error_details.h"
#include "core/base/status_macros.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/plan_encoder.h"
#include "server/rpc/residency_encoder.h"
#include "server/rpc/tensor_codec.h"

namespace ditserve {
namespace {

// How long a client is told to wait that finds another plan being made.
constexpr absl::Duration kPlanRetry = absl::Seconds(1);

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

void Encode(const ModelInfo& info, v1::Model& proto) {
  proto.set_name(info.name);
  proto.set_type("QwenImageDiT");
  proto.set_state(info.ready ? v1::MODEL_STATE_READY : v1::MODEL_STATE_LOADING);
  proto.set_parameters(info.parameters);
  proto.set_stored_bytes(info.stored_bytes);
  if (info.model == nullptr) return;
  proto.set_blocks(static_cast<int32_t>(info.model->config().num_layers));
  proto.set_numerics(info.model->config().numerics == Numerics::kDiffusers ? v1::NUMERICS_DIFFUSERS
                                                                           : v1::NUMERICS_DIFFSYNTH);
}

// `stored` walks through the dtypes of the model's parameters.
void Encode(const ModuleSpec& module, std::vector<DType>::const_iterator& stored, v1::Module& proto) {
  proto.set_path(module.path);
  proto.set_type(module.type);
  for (const ParameterSpec& parameter : module.parameters) {
    v1::Parameter& added = *proto.add_parameters();
    added.set_name(parameter.name);
    added.mutable_shape()->Assign(parameter.shape.begin(), parameter.shape.end());
    added.set_dtype(ToProto(*stored++));
  }
}

void Encode(const VramConfig& config, v1::VramConfig& proto) {
  proto.set_offload_dtype(config.offload_dtype.value_or(""));
  proto.set_offload_device(config.offload_device.value_or(""));
  proto.set_onload_dtype(config.onload_dtype.value_or(""));
  proto.set_onload_device(config.onload_device.value_or(""));
  proto.set_preparing_dtype(config.preparing_dtype.value_or(""));
  proto.set_preparing_device(config.preparing_device.value_or(""));
  proto.set_computation_dtype(config.computation_dtype.value_or(""));
  proto.set_computation_device(config.computation_device.value_or(""));
  proto.mutable_module_map()->insert(config.module_map.begin(), config.module_map.end());
}

void Encode(const Profile& profile, v1::Profile& proto) {
  proto.set_name(profile.name);
  proto.set_description(profile.description);
  Encode(ToVramConfig(profile), *proto.mutable_vram_config());
  if (profile.vram_limit_bytes) {
    proto.set_vram_limit_gib(static_cast<double>(*profile.vram_limit_bytes) / kGiB);
  }
}

}  // namespace

grpc::ServerUnaryReactor* ModelService::ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest*,
                                                   v1::ListModelsResponse* response) {
  for (const ModelInfo& info : engine_.Models()) Encode(info, *response->add_models());
  return FinishCall(context);
}

grpc::ServerUnaryReactor* ModelService::GetModel(grpc::CallbackServerContext* context,
                                                 const v1::GetModelRequest* request, v1::GetModelResponse* response) {
  return FinishCall(context, Describe(*request, *response));
}

absl::Status ModelService::Describe(const v1::GetModelRequest& request, v1::GetModelResponse& response) const {
  DITSERVE_ASSIGN_OR_RETURN(const ModelInfo info, FindModel(engine_.Models(), request.model()));
  DITSERVE_ASSIGN_OR_RETURN(const std::vector<std::vector<Tier>> tiers, engine_.ModuleTiers(info.name));
  Encode(info, *response.mutable_model());
  response.set_tree(info.model->tree());
  auto stored = info.stored_dtypes.begin();
  for (size_t i = 0; i < info.model->modules().size(); ++i) {
    v1::Module& module = *response.add_modules();
    Encode(info.model->modules()[i], stored, module);
    for (Tier tier : tiers[i]) module.add_tiers(ToProto(tier));
  }
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* ModelService::ListProfiles(grpc::CallbackServerContext* context,
                                                     const v1::ListProfilesRequest*,
                                                     v1::ListProfilesResponse* response) {
  for (const Profile& profile : catalogue_.profiles) Encode(profile, *response->add_profiles());
  response->set_default_profile(catalogue_.default_profile);
  return FinishCall(context);
}

grpc::ServerUnaryReactor* ModelService::Plan(grpc::CallbackServerContext* context, const v1::PlanRequest* request,
                                             v1::PlanResponse* response) {
  return FinishCall(context, MakePlan(*request, *response));
}

absl::Status ModelService::MakePlan(const v1::PlanRequest& request, v1::PlanResponse& response) {
  DITSERVE_ASSIGN_OR_RETURN(const PlanCall call, decoder_.DecodePlan(request, engine_.Models()));
  if (!planning_.TryLock()) {
    return WithRetryAfter(absl::ResourceExhaustedError("another plan is being made"), kPlanRetry);
  }
  const absl::StatusOr<ForwardPlan> plan = engine_.Plan(call);
  planning_.Unlock();
  if (!plan.ok()) return plan.status();
  EncodePlan(*plan, *response.mutable_plan());
  return absl::OkStatus();
}

}  // namespace ditserve
