#include "server/rpc/health_service.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "absl/strings/string_view.h"
#include "ditserve/v1/denoise_service.grpc.pb.h"
#include "ditserve/v1/model_service.grpc.pb.h"
#include "ditserve/v1/residency_service.grpc.pb.h"
#include "ditserve/v1/transformer_service.grpc.pb.h"
#include "inference/grpc_service.grpc.pb.h"

namespace ditserve {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

constexpr absl::string_view kLiveness = "liveness";

bool FollowsReadiness(absl::string_view service) {
  const std::array<absl::string_view, 7> names = {"",
                                                  "readiness",
                                                  v1::TransformerService::service_full_name(),
                                                  v1::DenoiseService::service_full_name(),
                                                  v1::ModelService::service_full_name(),
                                                  v1::ResidencyService::service_full_name(),
                                                  inference::GRPCInferenceService::service_full_name()};
  return std::find(names.begin(), names.end(), service) != names.end();
}

}  // namespace

// Serves one Watch: one operation of gRPC's at a time, each decided under the service's mutex and started outside it.
class HealthService::Watcher final : public grpc::ServerWriteReactor<HealthCheckResponse> {
 public:
  Watcher(HealthService* health, std::string service) : health_(*health), service_(std::move(service)) {}

  // Tells the client what it was not told yet, or ends the stream, if no operation is under way.
  void Advance() ABSL_LOCKS_EXCLUDED(health_.mutex_) {
    bool write = false;
    bool gone = false;
    {
      absl::MutexLock lock(&health_.mutex_);
      const Status status = health_.StatusOf(service_);
      gone = gone_;
      write = !gone && told_ != status;
      if (busy_ || (!write && !gone && !health_.closed_)) return;
      busy_ = true;
      if (write) told_ = status;
      message_.set_status(status);
    }
    if (write) {
      StartWrite(&message_);
    } else {
      Finish(gone ? grpc::Status::CANCELLED : grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server is stopping"));
    }
  }

  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(health_.mutex_) {
    {
      absl::MutexLock lock(&health_.mutex_);
      busy_ = false;
      gone_ |= !ok;
    }
    Advance();
  }

  void OnCancel() override ABSL_LOCKS_EXCLUDED(health_.mutex_) {
    {
      absl::MutexLock lock(&health_.mutex_);
      gone_ = true;
    }
    Advance();
  }

  void OnDone() override ABSL_LOCKS_EXCLUDED(health_.mutex_) {
    std::shared_ptr<Watcher> self;
    absl::MutexLock lock(&health_.mutex_);
    const auto found = std::find_if(health_.watchers_.begin(), health_.watchers_.end(),
                                    [this](const auto& watcher) { return watcher.get() == this; });
    self = *found;
    health_.watchers_.erase(found);
  }

 private:
  HealthService& health_;
  const std::string service_;
  bool busy_ ABSL_GUARDED_BY(health_.mutex_) = false;  // An operation is under way, or the stream has ended.
  bool gone_ ABSL_GUARDED_BY(health_.mutex_) = false;  // The client is.
  std::optional<Status> told_ ABSL_GUARDED_BY(health_.mutex_);
  HealthCheckResponse message_;
};

HealthService::HealthService() = default;
HealthService::~HealthService() = default;

HealthService::Status HealthService::StatusOf(const std::string& service) const {
  if (service == kLiveness) return lost_ ? HealthCheckResponse::NOT_SERVING : HealthCheckResponse::SERVING;
  if (!FollowsReadiness(service)) return HealthCheckResponse::SERVICE_UNKNOWN;
  return ready_ && !lost_ ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
}

void HealthService::SetReady(bool ready) {
  {
    absl::MutexLock lock(&mutex_);
    ready_ = ready;
  }
  AdvanceWatchers();
}

bool HealthService::ready() const {
  absl::MutexLock lock(&mutex_);
  return ready_ && !lost_;
}

bool HealthService::alive() const {
  absl::MutexLock lock(&mutex_);
  return !lost_;
}

void HealthService::SetLost() {
  {
    absl::MutexLock lock(&mutex_);
    lost_ = true;
  }
  AdvanceWatchers();
}

void HealthService::Close() {
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }
  AdvanceWatchers();
}

void HealthService::AdvanceWatchers() {
  std::set<std::shared_ptr<Watcher>> watchers;
  {
    absl::MutexLock lock(&mutex_);
    watchers = watchers_;
  }
  for (const auto& watcher : watchers) watcher->Advance();
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context, const HealthCheckRequest* request,
                                               HealthCheckResponse* response) {
  {
    absl::MutexLock lock(&mutex_);
    response->set_status(StatusOf(request->service()));
  }
  auto* reactor = context->DefaultReactor();
  reactor->Finish(response->status() == HealthCheckResponse::SERVICE_UNKNOWN
                      ? grpc::Status(grpc::StatusCode::NOT_FOUND, "service: unknown")
                      : grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<HealthCheckResponse>* HealthService::Watch(grpc::CallbackServerContext*,
                                                                    const HealthCheckRequest* request) {
  const auto watcher = std::make_shared<Watcher>(this, request->service());
  {
    absl::MutexLock lock(&mutex_);
    watchers_.insert(watcher);
  }
  watcher->Advance();
  return watcher.get();
}

}  // namespace ditserve
