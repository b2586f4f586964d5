#ifndef DITSERVE_SERVER_RPC_HEALTH_SERVICE_H_
#define DITSERVE_SERVER_RPC_HEALTH_SERVICE_H_

#include <memory>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace ditserve {

// The standard health protocol. "liveness" is SERVING until a checkpoint is lost; "", "readiness" and the names of the
// API's services while requests are served.
//
// Watchers are told each change; one that reads slowly is told the newest.
// Thread safety: thread-safe. Ownership: must outlive the gRPC server.
class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;

  HealthService();
  ~HealthService() override;

  // Not ready until it is said to be.
  void SetReady(bool ready) ABSL_LOCKS_EXCLUDED(mutex_);

  // What "readiness" and "liveness" tell.
  bool ready() const ABSL_LOCKS_EXCLUDED(mutex_);
  bool alive() const ABSL_LOCKS_EXCLUDED(mutex_);

  // A checkpoint is not what was opened any more: neither ready nor alive until the process is started anew, which
  // opens it again.
  void SetLost() ABSL_LOCKS_EXCLUDED(mutex_);

  // Ends every Watch, now and later, so that the gRPC server can end.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context, const grpc::health::v1::HealthCheckRequest* request) override;

 private:
  class Watcher;

  // SERVICE_UNKNOWN for a name that is none of ours.
  Status StatusOf(const std::string& service) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Has each watcher do what is due.
  void AdvanceWatchers() ABSL_LOCKS_EXCLUDED(mutex_);

  mutable absl::Mutex mutex_;  // Guards the watchers' state too.
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
  bool lost_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<std::shared_ptr<Watcher>> watchers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_HEALTH_SERVICE_H_
