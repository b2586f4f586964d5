#include "client/ditctl/error_text.h"

#include <google/protobuf/util/time_util.h>

#include <optional>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/ditctl/print.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace ditserve::ditctl {
namespace {

// What the details of an error tell; each may be missing.
struct Details {
  std::string field;
  std::optional<google::rpc::QuotaFailure::Violation> quota;
  std::optional<int64_t> retry_seconds;  // Rounded up.
};

Details DetailsOf(const grpc::Status& status) {
  Details details;
  google::rpc::Status rich;
  if (!rich.ParseFromString(status.error_details())) return details;
  google::rpc::BadRequest bad_request;
  google::rpc::QuotaFailure failure;
  google::rpc::RetryInfo retry;
  for (const google::protobuf::Any& detail : rich.details()) {
    if (detail.UnpackTo(&bad_request) && bad_request.field_violations_size() > 0) {
      details.field = bad_request.field_violations(0).field();
    }
    if (detail.UnpackTo(&failure) && failure.violations_size() > 0) details.quota = failure.violations(0);
    if (detail.UnpackTo(&retry)) {
      details.retry_seconds =
          (google::protobuf::util::TimeUtil::DurationToMilliseconds(retry.retry_delay()) + 999) / 1000;
    }
  }
  return details;
}

// "it needs 3.0 GiB of device memory, the budget is 2.0 GiB".
std::string ShortageText(const google::rpc::QuotaFailure::Violation& quota) {
  const auto& dimensions = quota.quota_dimensions();
  const auto memory = dimensions.find("memory");
  const auto needed = dimensions.find("needed_bytes");
  int64_t needed_bytes = 0;
  if (memory == dimensions.end() || needed == dimensions.end() || !absl::SimpleAtoi(needed->second, &needed_bytes)) {
    return quota.description();
  }
  return absl::StrCat("it needs ", Bytes(needed_bytes), " of ", memory->second, " memory, the budget is ",
                      Bytes(quota.quota_value()));
}

std::string Hint(const grpc::Status& status, const std::string& address) {
  const Details details = DetailsOf(status);
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      return details.retry_seconds
                 ? std::string("try again once it is loaded: `ditctl forward --wait-seconds N` waits for that")
                 : absl::StrCat("is the server running and ready at ", address, "? see `ditctl health`");
    case grpc::StatusCode::NOT_FOUND:
      if (details.field == "profile") return "see `ditctl profiles`";
      if (details.field == "model") return "see `ditctl models`";
      if (details.field == "device") return "see `ditctl residency`";
      return "";
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      // Ours say when to try again; gRPC's own are about the size of a message.
      return details.retry_seconds
                 ? absl::StrCat("the server is full now: try again in about ", *details.retry_seconds,
                                " s, or lower what the request takes")
                 : std::string(
                       "send less at a time, or raise the limit: max_receive_message_bytes where no other is named");
    case grpc::StatusCode::FAILED_PRECONDITION:
      return details.quota
                 ? absl::StrCat("this server can never run the request as it is: ", ShortageText(*details.quota),
                                "; `ditctl plan` tells what can")
                 : "";
    case grpc::StatusCode::UNAUTHENTICATED:
      return "name a file that holds the server's token: --token-file";
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return absl::StrCat("the server at ", address, " took too long; `ditctl forward` waits --deadline-seconds");
    case grpc::StatusCode::DATA_LOSS:
      return "the checkpoint changed underneath the server: restore it and restart the server";
    case grpc::StatusCode::UNIMPLEMENTED:
      return absl::StrCat("what listens at ", address, " is no ditserve of this version, or its other port");
    case grpc::StatusCode::INTERNAL:
      return "a fault of the server: its log says more";
    default:
      return "";
  }
}

}  // namespace

std::string CodeName(grpc::StatusCode code) {
  const std::string name = absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
  return name.empty() ? absl::StrCat("code ", static_cast<int>(code)) : name;
}

std::string ErrorText(const grpc::Status& status, const std::string& address) {
  const std::string hint = Hint(status, address);
  return absl::StrCat("ditctl: ", CodeName(status.error_code()), ": ", status.error_message(), "\n",
                      hint.empty() ? "" : absl::StrCat("  ", hint, "\n"));
}

}  // namespace ditserve::ditctl
