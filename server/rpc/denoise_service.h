#ifndef DITSERVE_SERVER_RPC_DENOISE_SERVICE_H_
#define DITSERVE_SERVER_RPC_DENOISE_SERVICE_H_

#include "ditserve/v1/denoise_service.grpc.pb.h"
#include "server/rpc/forward_calls.h"

namespace ditserve {

// Denoise.
//
// Thread safety: thread-safe. Ownership: `calls` must outlive it; it must outlive the gRPC server.
class DenoiseService final : public v1::DenoiseService::CallbackService {
 public:
  explicit DenoiseService(ForwardCalls* calls) : calls_(*calls) {}

  grpc::ServerWriteReactor<v1::DenoiseResponse>* Denoise(grpc::CallbackServerContext* context,
                                                         const v1::DenoiseRequest* request) override {
    return calls_.ServeDenoise(context, *request);
  }

 private:
  ForwardCalls& calls_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_DENOISE_SERVICE_H_
