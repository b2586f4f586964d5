#ifndef DITSERVE_SERVER_RESIDENCY_SERVICE_H_
#define DITSERVE_SERVER_RESIDENCY_SERVICE_H_

#include "ditserve/v1/residency_service.grpc.pb.h"
#include "server/engine.h"

namespace ditserve {

// Tells where every byte is.
//
// Thread safety: thread-safe. Ownership: `engine` must outlive it; it must outlive the gRPC server.
class ResidencyService final : public v1::ResidencyService::CallbackService {
 public:
  explicit ResidencyService(const Engine* engine) : engine_(*engine) {}

  grpc::ServerUnaryReactor* GetResidency(grpc::CallbackServerContext* context, const v1::GetResidencyRequest* request,
                                         v1::GetResidencyResponse* response) override;

 private:
  const Engine& engine_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RESIDENCY_SERVICE_H_
