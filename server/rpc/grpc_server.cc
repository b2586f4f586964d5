#include "server/rpc/grpc_server.h"

#include <grpc/support/time.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_posix.h>

#include <utility>

#include "absl/memory/memory.h"
#include "core/base/status_macros.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/served_methods.h"

namespace ditserve {
namespace {

// Threads of gRPC's that may block in a handler. Only reflection has such handlers.
constexpr int kMaxThreads = 8;

// Of a call. More than the gate lets through: else gRPC's own 8 KiB were the limit, told without details.
constexpr int kMaxMetadataBytes = 32 << 10;

// Those who change the server or ask for health are few.
constexpr DoorLimits kFewLimits = {.max_connections = 64, .max_calls = 64, .message_bytes = 1 << 20};

// gRPC keeps a list of plugins for every server of the process.
void EnableReflection() {
  static const bool enabled = [] {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  static_cast<void>(enabled);
}

// What clients may do is the gate's to say, and how long they may be silent.
std::unique_ptr<grpc::Server> StartServer(std::initializer_list<grpc::Service*> services) {
  EnableReflection();
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(-1);
  builder.SetMaxSendMessageSize(-1);
  builder.SetResourceQuota(grpc::ResourceQuota("ditserve").SetMaxThreads(kMaxThreads));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  for (const grpc_compression_algorithm algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  }
  for (grpc::Service* service : services) builder.RegisterService(service);
  return builder.BuildAndStart();
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcServerOptions& options, Engine* engine,
                                                              const ProfileCatalogue* catalogue) {
  auto server = absl::WrapUnique(new GrpcServer(options, engine, catalogue));
  DITSERVE_RETURN_IF_ERROR(server->Listen(options));
  return server;
}

GrpcServer::GrpcServer(const GrpcServerOptions& options, Engine* engine, const ProfileCatalogue* catalogue)
    : calls_(engine, RequestDecoder(options.request_limits, catalogue), options.answer_bytes,
             WithLossObserver(options.observers)),
      transformer_(&calls_),
      denoise_(&calls_),
      models_(engine, catalogue, options.request_limits),
      residency_(engine),
      inference_(engine, &calls_, &health_, options.version),
      admin_(engine) {}

std::vector<RequestObserver*> GrpcServer::WithLossObserver(std::vector<RequestObserver*> observers) {
  observers.push_back(&loss_);
  return observers;
}

GrpcServer::~GrpcServer() { Shutdown(absl::ZeroDuration()); }

absl::Status GrpcServer::Listen(const GrpcServerOptions& options) {
  server_ = StartServer({&transformer_, &denoise_, &models_, &residency_, &inference_, &health_, &admin_});
  if (server_ == nullptr) return absl::InternalError("gRPC does not start");
  const bool tls = !options.tls.certificate.empty();
  const bool asks = options.access != nullptr;
  GateOptions gate;
  gate.doors.push_back(
      {"clients", options.address, ClientMethods(options.max_receive_message_bytes), options.limits, tls, asks});
  if (!options.admin_address.empty()) {
    admin_door_ = gate.doors.size();
    gate.doors.push_back({"admin", options.admin_address, AdminMethods(), kFewLimits, tls, asks});
  }
  if (!options.health_address.empty()) {
    health_door_ = gate.doors.size();
    gate.doors.push_back({"health", options.health_address, HealthMethods(), kFewLimits});
  }
  gate.tls = options.tls;
  gate.access = options.access;
  gate.timeouts = options.timeouts;
  gate.connect_server = [this](int descriptor) { grpc::AddInsecureChannelFromFd(server_.get(), descriptor); };
  gate.trailers = TrailersOf;
  DITSERVE_ASSIGN_OR_RETURN(gate_, Gate::Open(std::move(gate), &clock_));
  return absl::OkStatus();
}

GateFigures GrpcServer::Figures() const {
  GateFigures figures = gate_->Figures();
  figures.answer_bytes = calls_.answer_bytes();
  return figures;
}

void GrpcServer::Shutdown(absl::Duration grace) {
  health_.SetReady(false);
  health_.Close();
  residency_.Close();
  if (gate_ != nullptr) gate_->Shutdown(grace);
  if (server_ != nullptr) server_->Shutdown(gpr_now(GPR_CLOCK_MONOTONIC));
}

}  // namespace ditserve
