#ifndef DITSERVE_SERVER_RPC_GRPC_SERVER_H_
#define DITSERVE_SERVER_RPC_GRPC_SERVER_H_

#include <grpcpp/server.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/rpc/health_service.h"
#include "server/rpc/model_service.h"
#include "server/rpc/residency_service.h"
#include "server/rpc/transformer_service.h"

namespace ditserve {

struct GrpcServerOptions {
  std::string address;  // "host:port", port 0: any that is free; "unix:path", "unix:///path".
  int max_concurrent_calls = 64;
  int max_receive_message_bytes = 64 << 20;
  RequestLimits request_limits;
  RequestObserver* observer = nullptr;  // May be null; must outlive the server.
};

// Every service of this process on one address, reflection included. Not ready (see HealthService) until it is said to
// be.
//
// Thread safety: thread-safe. Ownership: `engine` and `catalogue` must outlive it; destroying it cancels what runs.
class GrpcServer {
 public:
  // Listens. Errors: InvalidArgument for an address that can't be used; Unavailable for one that is in use or not to be
  // had here.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcServerOptions& options, Engine* engine,
                                                           const ProfileCatalogue* catalogue);
  ~GrpcServer();

  // Where clients find it: the address of the options, with the port that was chosen.
  const std::string& address() const { return address_; }

  void SetReady(bool ready) { health_.SetReady(ready); }

  // Accepts no new call, gives those under way `grace` to end, cancels the rest and waits for them.
  void Shutdown(absl::Duration grace);

 private:
  GrpcServer(const GrpcServerOptions& options, Engine* engine, const ProfileCatalogue* catalogue);

  absl::Status Listen(const GrpcServerOptions& options);

  std::string address_;
  TransformerService transformer_;
  ModelService models_;
  ResidencyService residency_;
  HealthService health_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_GRPC_SERVER_H_
