#ifndef DITSERVE_SERVER_RPC_GRPC_STATUS_H_
#define DITSERVE_SERVER_RPC_GRPC_STATUS_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>
#include <grpcpp/support/status.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace ditserve {

// What a client is told of `status`: the same code and message, the message cut where it would not fit into a
// trailer, and google.rpc's details (docs/errors.md). Of errors that are ours (Internal, Unknown) it is told no more
// than that; the message goes to the log.
grpc::Status ToGrpcStatus(const absl::Status& status);

// The same for the end of a call. What is worth trying again carries gRPC's hint, the trailer "grpc-retry-pushback-ms",
// beside RetryInfo.
// To be called before the call's last operation starts.
grpc::Status EndOfCall(const absl::Status& status, grpc::CallbackServerContext& context);

// Ends a unary call with EndOfCall.
grpc::ServerUnaryReactor* FinishCall(grpc::CallbackServerContext* context,
                                     const absl::Status& status = absl::OkStatus());

// The same as HTTP/2 carries it, for calls that do not come as far as gRPC.
std::vector<std::pair<std::string, std::string>> TrailersOf(const absl::Status& status);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_GRPC_STATUS_H_
