#ifndef DITSERVE_SERVER_RPC_GRPC_SERVER_H_
#define DITSERVE_SERVER_RPC_GRPC_SERVER_H_

#include <grpcpp/server.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/base/clock.h"
#include "server/engine/request_observer.h"
#include "server/gate/gate.h"
#include "server/rpc/admin_service.h"
#include "server/rpc/denoise_service.h"
#include "server/rpc/forward_calls.h"
#include "server/rpc/health_service.h"
#include "server/rpc/inference_service.h"
#include "server/rpc/model_service.h"
#include "server/rpc/residency_service.h"
#include "server/rpc/transformer_service.h"

namespace ditserve {

struct GrpcServerOptions {
  std::string address;         // Of clients, as Listener::Open takes it.
  std::string admin_address;   // Of who changes the server; empty: nobody does.
  std::string health_address;  // Of who asks for health alone, without TLS or token; empty: nobody does.
  DoorLimits limits;           // Of clients.
  int64_t max_receive_message_bytes = 64 << 20;
  int64_t answer_bytes = 512 << 20;       // At most, of the answers of all calls together.
  TlsFiles tls;                           // Of the first two addresses.
  const AccessControl* access = nullptr;  // Asked there; may be null, must outlive the server.
  GateTimeouts timeouts;
  RequestLimits request_limits;
  std::string version;                      // What it tells of itself.
  std::vector<RequestObserver*> observers;  // Must outlive the server.
};

// Every service of this process, behind a gate with a door for clients, one for who changes the server, and one for
// health alone. Not ready (see HealthService) until it is said to be.
//
// Thread safety: thread-safe. Ownership: `engine` and `catalogue` must outlive it; destroying it cancels what runs.
class GrpcServer {
 public:
  // Listens. Errors: as Gate::Open.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcServerOptions& options, Engine* engine,
                                                           const ProfileCatalogue* catalogue);
  ~GrpcServer();

  // Where it listens, with the ports that were chosen; empty where it does not.
  std::string address() const { return gate_->address(0); }
  std::string admin_address() const { return admin_door_ ? gate_->address(*admin_door_) : ""; }
  std::string health_address() const { return health_door_ ? gate_->address(*health_door_) : ""; }

  GateFigures Figures() const;

  void SetReady(bool ready) { health_.SetReady(ready); }
  // Tells clients to take their calls elsewhere, and goes on serving those that they make all the same: health's.
  void Drain() { gate_->Drain(); }

  // Accepts no new call, gives those under way `grace` to end, cancels the rest and waits for them.
  void Shutdown(absl::Duration grace);

 private:
  GrpcServer(const GrpcServerOptions& options, Engine* engine, const ProfileCatalogue* catalogue);

  // Sees a checkpoint that is lost by the request that was.
  class LossObserver final : public RequestObserver {
   public:
    explicit LossObserver(HealthService* health) : health_(*health) {}
    void OnEnd(const EndedRequest& request) override {
      if (request.code == absl::StatusCode::kDataLoss) health_.SetLost();
    }

   private:
    HealthService& health_;
  };

  absl::Status Listen(const GrpcServerOptions& options);
  std::vector<RequestObserver*> WithLossObserver(std::vector<RequestObserver*> observers);

  const SteadyClock clock_;
  HealthService health_;
  LossObserver loss_{&health_};
  ForwardCalls calls_;
  TransformerService transformer_;
  DenoiseService denoise_;
  ModelService models_;
  ResidencyService residency_;
  InferenceService inference_;
  AdminService admin_;
  std::unique_ptr<grpc::Server> server_;  // Listens nowhere: the gate hands connections to it.
  std::optional<size_t> admin_door_, health_door_;
  std::unique_ptr<Gate> gate_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_GRPC_SERVER_H_
