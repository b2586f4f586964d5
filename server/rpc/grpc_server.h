#ifndef DITSERVE_SERVER_RPC_GRPC_SERVER_H_
#define DITSERVE_SERVER_RPC_GRPC_SERVER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine/access.h"
#include "server/rpc/admin_service.h"
#include "server/rpc/forward_calls.h"
#include "server/rpc/health_service.h"
#include "server/rpc/inference_service.h"
#include "server/rpc/listener.h"
#include "server/rpc/model_service.h"
#include "server/rpc/residency_service.h"
#include "server/rpc/transformer_service.h"

namespace ditserve {

struct GrpcServerOptions {
  std::string address;        // Of clients, as Listener::Start takes it.
  std::string admin_address;  // Of who changes the server; empty: nobody does.
  int max_concurrent_calls = 64;
  int max_receive_message_bytes = 64 << 20;
  RequestLimits request_limits;
  std::string version;                      // What it tells of itself.
  std::vector<RequestObserver*> observers;  // Must outlive the server.
  const AccessControl* access = nullptr;    // Asked on the admin address; may be null, must outlive the server.
};

// Every service of this process: those of clients on one address, AdminService on another. Not ready (see
// HealthService) until it is said to be.
//
// Thread safety: thread-safe. Ownership: `engine` and `catalogue` must outlive it; destroying it cancels what runs.
class GrpcServer {
 public:
  // Listens. Errors: as Listener::Start.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcServerOptions& options, Engine* engine,
                                                           const ProfileCatalogue* catalogue);
  ~GrpcServer();

  // Where it listens, with the ports that were chosen.
  const std::string& address() const { return listener_->address(); }
  std::string admin_address() const { return admin_listener_ == nullptr ? "" : admin_listener_->address(); }

  void SetReady(bool ready) { health_.SetReady(ready); }

  // Accepts no new call, gives those under way `grace` to end, cancels the rest and waits for them.
  void Shutdown(absl::Duration grace);

 private:
  GrpcServer(const GrpcServerOptions& options, Engine* engine, const ProfileCatalogue* catalogue);

  absl::Status Listen(const GrpcServerOptions& options);

  ForwardCalls calls_;
  TransformerService transformer_;
  ModelService models_;
  ResidencyService residency_;
  HealthService health_;
  InferenceService inference_;
  AdminService admin_;
  std::unique_ptr<Listener> listener_, admin_listener_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_GRPC_SERVER_H_
