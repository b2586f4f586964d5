#ifndef DITSERVE_SERVER_RPC_TRANSFORMER_SERVICE_H_
#define DITSERVE_SERVER_RPC_TRANSFORMER_SERVICE_H_

#include "core/base/executor.h"
#include "ditserve/v1/transformer_service.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/engine/request_observer.h"
#include "server/rpc/call_slots.h"
#include "server/rpc/request_decoder.h"

namespace ditserve {

// Forward and ForwardStream: decode, submit to the engine, encode on a thread of their own.
//
// A call ends when the engine is done with it, also after the client has gone: so a request's bytes live as long as
// the tensors that view them are read, and a call that still computes keeps its slot. The slot is free before the
// client has its answer: one that reads slowly takes no other's place.
//
// Thread safety: thread-safe. Ownership: `engine` must outlive it; it must outlive the gRPC server.
class TransformerService final : public v1::TransformerService::CallbackService {
 public:
  // More than `max_concurrent_calls` at one time are refused with ResourceExhausted.
  // `observer` may be null; it must outlive the gRPC server.
  TransformerService(Engine* engine, RequestDecoder decoder, int max_concurrent_calls, RequestObserver* observer);

  grpc::ServerUnaryReactor* Forward(grpc::CallbackServerContext* context, const v1::ForwardRequest* request,
                                    v1::ForwardResponse* response) override;
  grpc::ServerWriteReactor<v1::ForwardStreamResponse>* ForwardStream(grpc::CallbackServerContext* context,
                                                                     const v1::ForwardStreamRequest* request) override;

 private:
  // A request that may be submitted.
  struct Accepted {
    CallSlots::Slot slot;
    DecodedForward decoded;
  };
  absl::StatusOr<Accepted> Accept(const grpc::CallbackServerContext& context, const v1::ForwardRequest& request);

  Engine& engine_;
  const RequestDecoder decoder_;
  CallSlots slots_;
  RequestObserver* const observer_;
  Executor encoder_;  // A thread for answers: neither the engine's nor gRPC's wait while one is copied.
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_TRANSFORMER_SERVICE_H_
