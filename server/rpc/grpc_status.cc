#include "server/rpc/grpc_status.h"

#include <spdlog/spdlog.h>

#include <optional>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "core/base/error_details.h"
#include "core/base/quoted.h"
#include "google/protobuf/util/time_util.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace ditserve {
namespace {

// Clients refuse a response whose headers and trailers exceed 8 KiB. The message is told percent-encoded, which triples
// a byte at most, and up to three times among the details, whose encoding adds a third.
constexpr size_t kMaxMessageBytes = 960;
constexpr size_t kMaxFieldBytes = 256;

// Where nobody knows better: a second is about what a queue needs to move, and short beside a forward pass.
constexpr absl::Duration kUsualRetry = absl::Seconds(1);

std::optional<absl::Duration> RetryOf(const absl::Status& status) {
  const std::optional<absl::Duration> told = RetryAfterOf(status);
  const bool is_for_now = absl::IsResourceExhausted(status) && FieldOf(status).empty();
  return told || !is_for_now ? told : kUsualRetry;
}

void AddDetails(const absl::Status& status, google::rpc::Status& rich) {
  if (const std::string field = FieldOf(status); !field.empty()) {
    google::rpc::BadRequest bad_request;
    google::rpc::BadRequest::FieldViolation& violation = *bad_request.add_field_violations();
    violation.set_field(Shortened(field, kMaxFieldBytes));
    violation.set_description(std::string(absl::StripPrefix(rich.message(), field + ": ")));
    rich.add_details()->PackFrom(bad_request);
  }
  if (const std::optional<MemoryShortage> shortage = ShortageOf(status)) {
    const std::string memory(Name(IsHost(shortage->memory) ? Tier::kHost : Tier::kDevice));
    google::rpc::QuotaFailure failure;
    google::rpc::QuotaFailure::Violation& violation = *failure.add_violations();
    violation.set_subject("memory:" + memory);
    violation.set_description(rich.message());
    violation.set_quota_metric("ditserve_memory_budget_bytes");
    violation.set_quota_value(shortage->budget_bytes);
    (*violation.mutable_quota_dimensions())["memory"] = memory;
    (*violation.mutable_quota_dimensions())["needed_bytes"] = absl::StrCat(shortage->needed_bytes);
    rich.add_details()->PackFrom(failure);
  }
  if (const std::optional<absl::Duration> retry = RetryOf(status)) {
    google::rpc::RetryInfo info;
    *info.mutable_retry_delay() =
        google::protobuf::util::TimeUtil::MillisecondsToDuration(absl::ToInt64Milliseconds(*retry));
    rich.add_details()->PackFrom(info);
  }
}

// As a status' message stands in a header (gRPC over HTTP/2, Responses).
std::string PercentEncoded(absl::string_view message) {
  std::string encoded;
  for (const char c : message) {
    if (absl::ascii_isprint(c) && c != '%') {
      encoded.push_back(c);
    } else {
      absl::StrAppendFormat(&encoded, "%%%02X", static_cast<unsigned char>(c));
    }
  }
  return encoded;
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  if (absl::IsInternal(status) || absl::IsUnknown(status)) {
    spdlog::error("internal error: {}", status.ToString());
    return {grpc::StatusCode::INTERNAL, "internal error; the server's log says more"};
  }
  google::rpc::Status rich;
  rich.set_code(static_cast<int>(status.code()));
  rich.set_message(Shortened(status.message(), kMaxMessageBytes));
  AddDetails(status, rich);
  const auto code = static_cast<grpc::StatusCode>(status.code());
  if (rich.details().empty()) return {code, rich.message()};
  return {code, rich.message(), rich.SerializeAsString()};
}

grpc::Status EndOfCall(const absl::Status& status, grpc::CallbackServerContext& context) {
  if (const std::optional<absl::Duration> retry = RetryOf(status)) {
    context.AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(absl::ToInt64Milliseconds(*retry)));
  }
  return ToGrpcStatus(status);
}

grpc::ServerUnaryReactor* FinishCall(grpc::CallbackServerContext* context, const absl::Status& status) {
  auto* reactor = context->DefaultReactor();
  reactor->Finish(EndOfCall(status, *context));
  return reactor;
}

std::vector<std::pair<std::string, std::string>> TrailersOf(const absl::Status& status) {
  const grpc::Status told = ToGrpcStatus(status);
  std::vector<std::pair<std::string, std::string>> trailers = {
      {"grpc-status", absl::StrCat(static_cast<int>(told.error_code()))},
      {"grpc-message", PercentEncoded(told.error_message())}};
  if (!told.error_details().empty()) {
    trailers.emplace_back("grpc-status-details-bin", absl::Base64Escape(told.error_details()));
  }
  if (const std::optional<absl::Duration> retry = RetryOf(status)) {
    trailers.emplace_back("grpc-retry-pushback-ms", absl::StrCat(absl::ToInt64Milliseconds(*retry)));
  }
  return trailers;
}

}  // namespace ditserve
