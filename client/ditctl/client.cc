#include "client/ditctl/client.h"

#include <google/protobuf/util/json_util.h>
#include <grpcpp/create_channel.h>

#include <array>
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

// What to do about an error, by its code and what it says.
std::string Hint(const grpc::Status& status, const std::string& address) {
  const std::string& message = status.error_message();
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      return absl::StrCat("is the server running and ready at ", address, "? see `ditctl health`");
    case grpc::StatusCode::NOT_FOUND:
      if (absl::StrContains(message, "profile")) return "see `ditctl profiles`";
      if (absl::StrContains(message, "model")) return "see `ditctl models`";
      return "";
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return "the server is full now: try again later, or lower what the request takes";
    case grpc::StatusCode::FAILED_PRECONDITION:
      return "this server can never run the request as it is: see `ditctl residency` for its device and budgets";
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return "allow more with --deadline-seconds";
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
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

std::string CodeName(grpc::StatusCode code) {
  static constexpr std::array<const char*, 17> kNames = {
      "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
      "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
      "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
      "DATA_LOSS", "UNAUTHENTICATED"};
  const auto index = static_cast<size_t>(code);
  return index < kNames.size() ? kNames[index] : absl::StrCat("code ", index);
}

std::string ErrorText(const grpc::Status& status, const std::string& address) {
  const std::string hint = Hint(status, address);
  return absl::StrCat("ditctl: ", CodeName(status.error_code()), ": ", status.error_message(), "\n",
                      hint.empty() ? "" : absl::StrCat("  ", hint, "\n"));
}

int Fail(const absl::Status& status, const Environment& environment) {
  environment.err << "ditctl: " << std::string(status.message()) << "\n";
  if (absl::IsCancelled(status)) return kInterrupted;
  return absl::IsInvalidArgument(status) ? kUsage : kFailed;
}

int Fail(const grpc::Status& status, const std::string& address, const Environment& environment) {
  environment.err << ErrorText(status, address);
  return environment.interrupted ? kInterrupted : kFailed;
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
  const auto health = grpc::health::v1::Health::NewStub(Connect(address));
  const absl::Time deadline = absl::Now() + timeout;
  while (!environment.interrupted) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(std::min(deadline, absl::Now() + absl::Seconds(1))));
    grpc::health::v1::HealthCheckRequest request;
    grpc::health::v1::HealthCheckResponse response;
    request.set_service("readiness");
    const grpc::Status status = health->Check(&context, request, &response);
    if (status.ok() && response.status() == grpc::health::v1::HealthCheckResponse::SERVING) return absl::OkStatus();
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("the server at ", address, " was not ready within ", absl::FormatDuration(timeout)));
    }
    absl::SleepFor(absl::Milliseconds(100));
  }
  return absl::CancelledError("interrupted");
}

std::string ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  return status.ok() ? json : absl::StrCat("{\"error\": \"", status.ToString(), "\"}\n");
}

}  // namespace ditserve::ditctl
