#ifndef DITSERVE_SERVER_RPC_RESIDENCY_SERVICE_H_
#define DITSERVE_SERVER_RPC_RESIDENCY_SERVICE_H_

#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <memory>
#include <set>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "ditserve/v1/residency_service.grpc.pb.h"
#include "server/engine/engine.h"

namespace ditserve {

// Tells where every byte is.
//
// Thread safety: thread-safe; one thread of its own tells all watchers when their time has come. Ownership: `engine`
// must outlive it; it must outlive the gRPC server.
class ResidencyService final : public v1::ResidencyService::CallbackService {
 public:
  explicit ResidencyService(const Engine* engine);
  ~ResidencyService() override;

  // Ends all Watch streams with UNAVAILABLE.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);

  grpc::ServerUnaryReactor* GetResidency(grpc::CallbackServerContext* context, const v1::GetResidencyRequest* request,
                                         v1::GetResidencyResponse* response) override;
  grpc::ServerWriteReactor<v1::WatchResidencyResponse>* WatchResidency(
      grpc::CallbackServerContext* context, const v1::WatchResidencyRequest* request) override
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  class Watcher;

  const Engine& engine_;
  absl::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<std::shared_ptr<Watcher>> watchers_ ABSL_GUARDED_BY(mutex_);
  // Not gRPC's alarms: gRPC 1.51 waits for its timers by the wall clock, so that one set back silences them all.
  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_{io_.get_executor()};
  std::thread ticker_{[this] { io_.run(); }};
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_RESIDENCY_SERVICE_H_
