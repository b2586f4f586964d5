#ifndef DITSERVE_SERVER_RPC_FORWARD_CALLS_H_
#define DITSERVE_SERVER_RPC_FORWARD_CALLS_H_

#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/executor.h"
#include "core/base/quota.h"
#include "ditserve/v1/denoise_service.pb.h"
#include "ditserve/v1/transformer_service.pb.h"
#include "server/engine/engine.h"
#include "server/engine/request_observer.h"
#include "server/rpc/request_decoder.h"
#include "server/rpc/response_encoder.h"

namespace ditserve {

// Forward passes that were asked for, by whatever protocol: decodes, submits to the engine, has answers encoded on a
// thread of their own.
//
// A call ends when the engine is done with it, also after the client has gone: so a request's bytes live as long as
// the tensors that view them are read. (Of a device that is lost or hangs the engine is done with calls that have not
// ended, and reads their tensors no more.)
//
// Thread safety: thread-safe. Ownership: `engine` must outlive it; it must outlive the gRPC server.
class ForwardCalls {
 public:
  // Writes the response. Errors end the call.
  using Answer = absl::AnyInvocable<absl::Status(ForwardResult, const OutputForm&)>;

  // `answer_bytes`: at most, of the answers of all calls that have not ended. `observers` must outlive the gRPC server.
  ForwardCalls(Engine* engine, RequestDecoder decoder, int64_t answer_bytes, std::vector<RequestObserver*> observers);

  // That are booked now.
  int64_t answer_bytes() const { return answers_.held(); }

  // Makes the request; it must live until the call is done, which is when the answer is destroyed.
  using MakeRequest = absl::FunctionRef<absl::StatusOr<const v1::ForwardRequest*>()>;

  // Each serves one call of `rpc`.
  grpc::ServerUnaryReactor* Serve(grpc::CallbackServerContext* context, const char* rpc, MakeRequest make_request,
                                  Answer answer);
  grpc::ServerWriteReactor<v1::ForwardStreamResponse>* ServeStream(grpc::CallbackServerContext* context,
                                                                   const char* rpc, const v1::ForwardRequest& request);
  grpc::ServerWriteReactor<v1::DenoiseResponse>* ServeDenoise(grpc::CallbackServerContext* context,
                                                              const v1::DenoiseRequest& request);

 private:
  Engine& engine_;
  const RequestDecoder decoder_;
  const std::vector<RequestObserver*> observers_;
  Quota answers_;
  Executor encoder_;  // A thread for answers: neither the engine's nor gRPC's wait while one is copied.
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_FORWARD_CALLS_H_
