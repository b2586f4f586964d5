#ifndef DITSERVE_SERVER_RPC_MODEL_SERVICE_H_
#define DITSERVE_SERVER_RPC_MODEL_SERVICE_H_

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "ditserve/v1/model_service.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/engine/profile_catalogue.h"
#include "server/rpc/request_decoder.h"

namespace ditserve {

// Describes the loaded models and the configured profiles, and tells what passes would take.
//
// Thread safety: thread-safe. Ownership: `engine` and `catalogue` must outlive it; it must outlive the gRPC server.
class ModelService final : public v1::ModelService::CallbackService {
 public:
  ModelService(const Engine* engine, const ProfileCatalogue* catalogue, const RequestLimits& limits)
      : engine_(*engine), catalogue_(*catalogue), decoder_(limits, catalogue) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  // Errors: as FindModel.
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context, const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;
  grpc::ServerUnaryReactor* ListProfiles(grpc::CallbackServerContext* context, const v1::ListProfilesRequest* request,
                                         v1::ListProfilesResponse* response) override;
  // Errors: as RequestDecoder's; ResourceExhausted while another plan is made.
  grpc::ServerUnaryReactor* Plan(grpc::CallbackServerContext* context, const v1::PlanRequest* request,
                                 v1::PlanResponse* response) override;

 private:
  absl::Status Describe(const v1::GetModelRequest& request, v1::GetModelResponse& response) const;
  absl::Status MakePlan(const v1::PlanRequest& request, v1::PlanResponse& response) ABSL_LOCKS_EXCLUDED(planning_);

  const Engine& engine_;
  const ProfileCatalogue& catalogue_;
  const RequestDecoder decoder_;
  absl::Mutex planning_;  // Held while a plan is made: that takes a thread of gRPC's for as long.
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_MODEL_SERVICE_H_
