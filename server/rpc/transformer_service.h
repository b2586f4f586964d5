#ifndef DITSERVE_SERVER_RPC_TRANSFORMER_SERVICE_H_
#define DITSERVE_SERVER_RPC_TRANSFORMER_SERVICE_H_

#include "ditserve/v1/transformer_service.grpc.pb.h"
#include "server/rpc/forward_calls.h"

namespace ditserve {

// Forward and ForwardStream.
//
// Thread safety: thread-safe. Ownership: `calls` must outlive it; it must outlive the gRPC server.
class TransformerService final : public v1::TransformerService::CallbackService {
 public:
  explicit TransformerService(ForwardCalls* calls) : calls_(*calls) {}

  grpc::ServerUnaryReactor* Forward(grpc::CallbackServerContext* context, const v1::ForwardRequest* request,
                                    v1::ForwardResponse* response) override {
    return calls_.Serve(
        context, "Forward", [request] { return request; },
        [response](ForwardResult result, const OutputForm& form) {
          return EncodeResponse(std::move(result), form, *response);
        });
  }
  grpc::ServerWriteReactor<v1::ForwardStreamResponse>* ForwardStream(grpc::CallbackServerContext* context,
                                                                     const v1::ForwardStreamRequest* request) override {
    return calls_.ServeStream(context, "ForwardStream", request->request());
  }

 private:
  ForwardCalls& calls_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_TRANSFORMER_SERVICE_H_
