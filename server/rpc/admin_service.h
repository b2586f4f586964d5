#ifndef DITSERVE_SERVER_RPC_ADMIN_SERVICE_H_
#define DITSERVE_SERVER_RPC_ADMIN_SERVICE_H_

#include <string>

#include "absl/status/status.h"
#include "ditserve/v1/admin_service.grpc.pb.h"
#include "server/engine/engine.h"

namespace ditserve {

// Changes the server.
//
// Thread safety: thread-safe. Ownership: `engine` must outlive it; it must outlive the gRPC server.
class AdminService final : public v1::AdminService::CallbackService {
 public:
  explicit AdminService(Engine* engine) : engine_(*engine) {}

  // Errors: InvalidArgument; NotFound (device); those of Engine::MemoryBytes and SetBudget.
  grpc::ServerUnaryReactor* SetBudget(grpc::CallbackServerContext* context, const v1::SetBudgetRequest* request,
                                      v1::SetBudgetResponse* response) override;

 private:
  // `caller`: as EndedRequest's; for the log.
  absl::Status SetBudget(const v1::SetBudgetRequest& request, const std::string& caller,
                         v1::SetBudgetResponse& response);

  Engine& engine_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_ADMIN_SERVICE_H_
