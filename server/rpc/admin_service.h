#ifndef DITSERVE_SERVER_RPC_ADMIN_SERVICE_H_
#define DITSERVE_SERVER_RPC_ADMIN_SERVICE_H_

#include "ditserve/v1/admin_service.grpc.pb.h"
#include "server/engine/access.h"
#include "server/engine/engine.h"

namespace ditserve {

// Changes the server: for those whose token has the scope.
//
// Thread safety: thread-safe. Ownership: `engine` and `access` (null: nobody is asked for a token) must outlive it; it
// must outlive the gRPC server.
class AdminService final : public v1::AdminService::CallbackService {
 public:
  AdminService(Engine* engine, const AccessControl* access) : engine_(*engine), access_(access) {}

  // Errors: InvalidArgument; NotFound (device); those of AccessControl::Check, Engine::MemoryBytes and SetBudget.
  grpc::ServerUnaryReactor* SetBudget(grpc::CallbackServerContext* context, const v1::SetBudgetRequest* request,
                                      v1::SetBudgetResponse* response) override;

 private:
  absl::Status SetBudget(const grpc::CallbackServerContext& context, const v1::SetBudgetRequest& request,
                         v1::SetBudgetResponse& response);

  Engine& engine_;
  const AccessControl* const access_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_ADMIN_SERVICE_H_
