#include "server/rpc/residency_service.h"

#include <asio/steady_timer.hpp>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "core/base/error_details.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/residency_encoder.h"
#include "server/rpc/response_encoder.h"

namespace ditserve {
namespace {

constexpr absl::Duration kShortestInterval = absl::Milliseconds(100);
constexpr absl::Duration kLongestInterval = absl::Seconds(60);
constexpr absl::Duration kUsualInterval = absl::Seconds(1);

absl::StatusOr<absl::Duration> DecodeInterval(const v1::WatchResidencyRequest& request) {
  if (!request.has_interval()) return kUsualInterval;
  const absl::Duration interval =
      absl::Seconds(request.interval().seconds()) + absl::Nanoseconds(request.interval().nanos());
  if (interval >= kShortestInterval && interval <= kLongestInterval) return interval;
  return FieldError("interval", absl::StrCat(absl::FormatDuration(interval), ", expected 0.1 to 60 seconds"));
}

}  // namespace

// Serves one WatchResidency: writes, waits, writes. Only the next message is ever held, whatever the client's pace.
//
// Ownership: shared by the service, until OnDone, and its timer, while it waits.
class ResidencyService::Watcher final : public grpc::ServerWriteReactor<v1::WatchResidencyResponse>,
                                        public std::enable_shared_from_this<Watcher> {
 public:
  Watcher(ResidencyService* service, absl::Duration interval)
      : service_(*service), interval_(interval), timer_(service->io_) {}

  void Begin() { Tell(); }

  // The stream ends as soon as no write is under way.
  void End(grpc::Status why) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (!end_) end_ = std::move(why);
    if (waiting_) timer_.cancel();  // Its handler finishes.
  }

  void OnCancel() override { End(grpc::Status::CANCELLED); }

  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      if (!ok && !end_) end_ = grpc::Status::CANCELLED;
      waiting_ = !end_;
      if (waiting_) {
        timer_.expires_after(absl::ToChronoNanoseconds(interval_));
        timer_.async_wait([self = shared_from_this()](const asio::error_code&) { self->OnTime(); });
        return;
      }
    }
    FinishNow();
  }

  void OnDone() override {
    absl::MutexLock lock(&service_.mutex_);
    service_.watchers_.erase(shared_from_this());
  }

 private:
  // Or because the stream ends meanwhile.
  void OnTime() ABSL_LOCKS_EXCLUDED(mutex_) {
    bool ends = false;
    {
      absl::MutexLock lock(&mutex_);
      waiting_ = false;
      ends = end_.has_value();
    }
    if (ends) {
      FinishNow();
    } else {
      Tell();
    }
  }

  void Tell() {
    message_.Clear();
    const ResidencySnapshot snapshot = service_.engine_.Residency();
    EncodeResidency(snapshot, *message_.mutable_residency());
    EncodeDuration(snapshot.time, *message_.mutable_time());
    StartWrite(&message_);
  }

  void FinishNow() ABSL_LOCKS_EXCLUDED(mutex_) {
    grpc::Status why;
    {
      absl::MutexLock lock(&mutex_);
      why = *end_;
    }
    Finish(why);
  }

  ResidencyService& service_;
  const absl::Duration interval_;
  v1::WatchResidencyResponse message_;
  absl::Mutex mutex_;
  bool waiting_ ABSL_GUARDED_BY(mutex_) = false;  // For the timer.
  std::optional<grpc::Status> end_ ABSL_GUARDED_BY(mutex_);
  asio::steady_timer timer_ ABSL_GUARDED_BY(mutex_);
};

ResidencyService::ResidencyService(const Engine* engine) : engine_(*engine) {}

ResidencyService::~ResidencyService() {
  work_.reset();  // No stream waits any longer.
  ticker_.join();
}

void ResidencyService::Close() {
  std::set<std::shared_ptr<Watcher>> watchers;
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    watchers = watchers_;
  }
  for (const auto& watcher : watchers) watcher->End({grpc::StatusCode::UNAVAILABLE, "the server is stopping"});
}

grpc::ServerUnaryReactor* ResidencyService::GetResidency(grpc::CallbackServerContext* context,
                                                         const v1::GetResidencyRequest*,
                                                         v1::GetResidencyResponse* response) {
  EncodeResidency(engine_.Residency(), *response->mutable_residency());
  return FinishCall(context);
}

grpc::ServerWriteReactor<v1::WatchResidencyResponse>* ResidencyService::WatchResidency(
    grpc::CallbackServerContext* context, const v1::WatchResidencyRequest* request) {
  const absl::StatusOr<absl::Duration> interval = DecodeInterval(*request);
  const auto watcher = std::make_shared<Watcher>(this, interval.value_or(kUsualInterval));
  bool closed = false;
  {
    absl::MutexLock lock(&mutex_);
    watchers_.insert(watcher);
    closed = closed_;
  }
  if (!interval.ok()) {
    watcher->Finish(EndOfCall(interval.status(), *context));
  } else if (closed) {
    watcher->Finish({grpc::StatusCode::UNAVAILABLE, "the server is stopping"});
  } else {
    watcher->Begin();
  }
  return watcher.get();
}

}  // namespace ditserve
