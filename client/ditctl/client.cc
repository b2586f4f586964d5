#include "client/ditctl/client.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "client/ditctl/error_text.h"
#include "ditserve/v1/residency_service.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace ditserve::ditctl {
namespace {

constexpr absl::Duration kInterruptPoll = absl::Milliseconds(50);
constexpr absl::Duration kReadyPoll = absl::Milliseconds(100);
constexpr absl::Duration kReadyTimeout = absl::Seconds(1);  // Of one question.

}  // namespace

grpc::Status GetResidency(const ServerAccess& server, grpc::ClientContext& context, v1::Residency& residency) {
  v1::GetResidencyResponse response;
  grpc::Status status = v1::ResidencyService::NewStub(server.Connect())->GetResidency(&context, {}, &response);
  residency.Swap(response.mutable_residency());
  return status;
}

std::optional<int> Parse(CLI::App& app, const std::vector<std::string>& arguments, const Environment& environment,
                         ServerAccess* server) {
  std::string help;
  const absl::Status parsed = ParseFlags(app, arguments, &help);
  if (!parsed.ok()) return Fail(parsed, environment);
  environment.out << help;
  if (!help.empty()) return kOk;
  const absl::Status loaded = server == nullptr ? absl::OkStatus() : server->Load();
  return loaded.ok() ? std::nullopt : std::optional(Fail(loaded, environment));
}

int Fail(const absl::Status& status, const Environment& environment) {
  environment.err << "ditctl: " << std::string(status.message()) << "\n";
  if (absl::IsCancelled(status)) return kInterrupted;
  return absl::IsInvalidArgument(status) || absl::IsNotFound(status) ? kUsage : kFailed;
}

int Fail(const grpc::Status& status, const std::string& address, const Environment& environment) {
  if (environment.interrupted) return Fail(absl::CancelledError("interrupted"), environment);
  environment.err << ErrorText(status, address);
  return kFailed;
}

// A signal handler can only set a flag, so a thread looks at it while a call is under way.
class CancelOnInterrupt::Watch {
 public:
  Watch(grpc::ClientContext& context, const std::atomic<bool>& interrupted)
      : thread_([this, &context, &interrupted] {
          while (!ended_.WaitForNotificationWithTimeout(kInterruptPoll)) {
            if (!interrupted) continue;
            context.TryCancel();
            return;
          }
        }) {}
  ~Watch() {
    ended_.Notify();
    thread_.join();
  }

 private:
  absl::Notification ended_;
  std::thread thread_;
};

CancelOnInterrupt::CancelOnInterrupt(grpc::ClientContext& context, const Environment& environment)
    : watch_(std::make_unique<Watch>(context, environment.interrupted)) {}

CancelOnInterrupt::~CancelOnInterrupt() = default;

absl::Status WaitUntilReady(const ServerAccess& server, absl::Duration timeout, const Environment& environment) {
  using grpc::health::v1::HealthCheckResponse;
  const auto health = grpc::health::v1::Health::NewStub(server.Connect());
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(std::min(deadline, absl::Now() + kReadyTimeout)));
    const CancelOnInterrupt interrupt(context, environment);
    grpc::health::v1::HealthCheckRequest request;
    HealthCheckResponse response;
    request.set_service("readiness");
    const grpc::Status status = health->Check(&context, request, &response);
    if (environment.interrupted) return absl::CancelledError("interrupted");
    if (status.ok() && response.status() == HealthCheckResponse::SERVING) return absl::OkStatus();
    if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED) {
      return absl::FailedPreconditionError(
          absl::StrCat("what listens at ", server.address(), " is no ditserve of this version, or its other port"));
    }
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(
          "the server at ", server.address(), " was not ready within ", absl::FormatDuration(timeout), ": ",
          status.ok() ? HealthCheckResponse::ServingStatus_Name(response.status()) : CodeName(status.error_code())));
    }
    absl::SleepFor(kReadyPoll);
  }
}

}  // namespace ditserve::ditctl
