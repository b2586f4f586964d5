#include "server/rpc/grpc_server.h"

#include "absl/memory/memory.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

// Requests to change the server are short.
constexpr int kMaxAdminMessageBytes = 64 << 10;

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcServerOptions& options, Engine* engine,
                                                              const ProfileCatalogue* catalogue) {
  auto server = absl::WrapUnique(new GrpcServer(options, engine, catalogue));
  DITSERVE_RETURN_IF_ERROR(server->Listen(options));
  return server;
}

GrpcServer::GrpcServer(const GrpcServerOptions& options, Engine* engine, const ProfileCatalogue* catalogue)
    : calls_(engine, RequestDecoder(options.request_limits, catalogue), options.max_concurrent_calls,
             options.observers),
      transformer_(&calls_),
      models_(engine, catalogue),
      residency_(engine),
      inference_(engine, &calls_, &health_, options.version),
      admin_(engine, options.access) {}

GrpcServer::~GrpcServer() { Shutdown(absl::ZeroDuration()); }

absl::Status GrpcServer::Listen(const GrpcServerOptions& options) {
  if (!options.admin_address.empty()) {
    DITSERVE_ASSIGN_OR_RETURN(admin_listener_,
                              Listener::Start(options.admin_address, kMaxAdminMessageBytes, {&admin_}));
  }
  DITSERVE_ASSIGN_OR_RETURN(listener_, Listener::Start(options.address, options.max_receive_message_bytes,
                                                       {&transformer_, &models_, &residency_, &inference_, &health_}));
  return absl::OkStatus();
}

void GrpcServer::Shutdown(absl::Duration grace) {
  health_.SetReady(false);
  health_.Close();
  residency_.Close();
  if (listener_ != nullptr) listener_->Shutdown(grace);
  if (admin_listener_ != nullptr) admin_listener_->Shutdown(grace);
}

}  // namespace ditserve
