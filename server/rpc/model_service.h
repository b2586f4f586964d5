#ifndef DITSERVE_SERVER_RPC_MODEL_SERVICE_H_
#define DITSERVE_SERVER_RPC_MODEL_SERVICE_H_

#include "ditserve/v1/model_service.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/engine/profile_catalogue.h"

namespace ditserve {

// Describes the loaded models and the configured profiles.
//
// Thread safety: thread-safe. Ownership: `engine` and `catalogue` must outlive it; it must outlive the gRPC server.
class ModelService final : public v1::ModelService::CallbackService {
 public:
  ModelService(const Engine* engine, const ProfileCatalogue* catalogue) : engine_(*engine), catalogue_(*catalogue) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  // Errors: as FindModel.
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context, const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;
  grpc::ServerUnaryReactor* ListProfiles(grpc::CallbackServerContext* context, const v1::ListProfilesRequest* request,
                                         v1::ListProfilesResponse* response) override;

 private:
  absl::Status Describe(const v1::GetModelRequest& request, v1::GetModelResponse& response) const;

  const Engine& engine_;
  const ProfileCatalogue& catalogue_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_MODEL_SERVICE_H_
