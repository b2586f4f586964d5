#include "client/ditctl/client.h"

#include <grpcpp/create_channel.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace ditserve::ditctl {
namespace {

constexpr absl::Duration kInterruptPoll = absl::Milliseconds(50);
constexpr absl::Duration kReadyPoll = absl::Milliseconds(100);
constexpr absl::Duration kReadyTimeout = absl::Seconds(1);  // Of one question.
constexpr int kMaxReconnectMs = 500;

// What to do about an error, by its code and what it says.
std::string Hint(const grpc::Status& status, const std::string& address) {
  const std::string& message = status.error_message();
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      if (absl::StrContains(message, "loading") || absl::StrContains(message, "loaded yet")) {
        return "try again once it is loaded: `ditctl forward --wait-seconds N`";
      }
      return absl::StrCat("is the server running and ready at ", address, "? see `ditctl health`");
    case grpc::StatusCode::NOT_FOUND:
      if (absl::StartsWith(message, "profile")) return "see `ditctl profiles`";
      if (absl::StartsWith(message, "model")) return "see `ditctl models`";
      return "";
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      if (absl::StrContains(message, "larger than max")) {  // gRPC's own words.
        return "send less at a time, or raise the server's max_receive_message_bytes";
      }
      return "the server is full now: try again later, or lower what the request takes";
    case grpc::StatusCode::FAILED_PRECONDITION:
      return "this server can never run the request as it is: see `ditctl residency` for its device and budgets";
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return absl::StrCat("the server at ", address, " took too long; `ditctl forward` waits --deadline-seconds");
    case grpc::StatusCode::DATA_LOSS:
      return "the checkpoint changed underneath the server: restore it and restart the server";
    case grpc::StatusCode::UNIMPLEMENTED:
      return absl::StrCat("what listens at ", address, " is no ditserve of this version");
    case grpc::StatusCode::INTERNAL:
      return "a fault of the server: its log says more";
    default:
      return "";
  }
}

}  // namespace

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  // gRPC would wait up to two minutes before it looks again for a server that is starting.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kMaxReconnectMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectMs);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

std::string CodeName(grpc::StatusCode code) {
  const std::string name = absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
  return name.empty() ? absl::StrCat("code ", static_cast<int>(code)) : name;
}

std::string ErrorText(const grpc::Status& status, const std::string& address) {
  const std::string hint = Hint(status, address);
  return absl::StrCat("ditctl: ", CodeName(status.error_code()), ": ", status.error_message(), "\n",
                      hint.empty() ? "" : absl::StrCat("  ", hint, "\n"));
}

std::optional<int> Parse(CLI::App& app, const std::vector<std::string>& arguments, const Environment& environment) {
  std::string help;
  const absl::Status parsed = ParseFlags(app, arguments, &help);
  if (!parsed.ok()) return Fail(parsed, environment);
  environment.out << help;
  return help.empty() ? std::nullopt : std::optional(kOk);
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

absl::Status WaitUntilReady(const std::string& address, absl::Duration timeout, const Environment& environment) {
  using grpc::health::v1::HealthCheckResponse;
  const auto health = grpc::health::v1::Health::NewStub(Connect(address));
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
      return absl::FailedPreconditionError(Hint(status, address));
    }
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(
          "the server at ", address, " was not ready within ", absl::FormatDuration(timeout), ": ",
          status.ok() ? HealthCheckResponse::ServingStatus_Name(response.status()) : CodeName(status.error_code())));
    }
    absl::SleepFor(kReadyPoll);
  }
}

}  // namespace ditserve::ditctl
