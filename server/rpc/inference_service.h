#ifndef DITSERVE_SERVER_RPC_INFERENCE_SERVICE_H_
#define DITSERVE_SERVER_RPC_INFERENCE_SERVICE_H_

#include <string>
#include <utility>

#include "inference/grpc_service.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/rpc/forward_calls.h"
#include "server/rpc/health_service.h"

namespace ditserve {

// The Open Inference Protocol, version 2: what clients of KServe and Triton speak. A ModelInfer is a Forward.
//
// Thread safety: thread-safe. Ownership: what it is made of must outlive it; it must outlive the gRPC server.
class InferenceService final : public inference::GRPCInferenceService::CallbackService {
 public:
  InferenceService(const Engine* engine, ForwardCalls* calls, const HealthService* health, std::string version)
      : engine_(*engine), calls_(*calls), health_(*health), version_(std::move(version)) {}

  grpc::ServerUnaryReactor* ServerLive(grpc::CallbackServerContext* context,
                                       const inference::ServerLiveRequest* request,
                                       inference::ServerLiveResponse* response) override;
  grpc::ServerUnaryReactor* ServerReady(grpc::CallbackServerContext* context,
                                        const inference::ServerReadyRequest* request,
                                        inference::ServerReadyResponse* response) override;
  // Errors: NotFound.
  grpc::ServerUnaryReactor* ModelReady(grpc::CallbackServerContext* context,
                                       const inference::ModelReadyRequest* request,
                                       inference::ModelReadyResponse* response) override;
  grpc::ServerUnaryReactor* ServerMetadata(grpc::CallbackServerContext* context,
                                           const inference::ServerMetadataRequest* request,
                                           inference::ServerMetadataResponse* response) override;
  // Errors: as FindModel.
  grpc::ServerUnaryReactor* ModelMetadata(grpc::CallbackServerContext* context,
                                          const inference::ModelMetadataRequest* request,
                                          inference::ModelMetadataResponse* response) override;
  // Errors: as DecodeInference, RequestDecoder::Decode and Engine::Submit.
  grpc::ServerUnaryReactor* ModelInfer(grpc::CallbackServerContext* context,
                                       const inference::ModelInferRequest* request,
                                       inference::ModelInferResponse* response) override;

 private:
  absl::StatusOr<bool> IsReady(const inference::ModelReadyRequest& request) const;
  absl::StatusOr<const v1::ForwardRequest*> Decode(inference::ModelInferRequest& request, v1::ForwardRequest& forward,
                                                   inference::ModelInferResponse& response) const;
  absl::Status Describe(const inference::ModelMetadataRequest& request,
                        inference::ModelMetadataResponse& response) const;

  const Engine& engine_;
  ForwardCalls& calls_;
  const HealthService& health_;
  const std::string version_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_INFERENCE_SERVICE_H_
