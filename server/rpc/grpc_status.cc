#include "server/rpc/grpc_status.h"

#include <spdlog/spdlog.h>

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"
#include "core/residency/policy_options.h"

namespace ditserve {
namespace {

// Clients refuse a response whose headers and trailers exceed 8 KiB; percent-encoding triples a byte at most.
constexpr size_t kMaxMessageBytes = 2048;
constexpr absl::string_view kCut = "...";

// `message`, cut between two UTF-8 characters.
std::string Shortened(absl::string_view message) {
  if (message.size() <= kMaxMessageBytes) return std::string(message);
  size_t length = kMaxMessageBytes - kCut.size();
  while (length > 0 && (static_cast<unsigned char>(message[length]) & 0xC0) == 0x80) --length;
  std::string shortened(message.substr(0, length));
  shortened.append(kCut.data(), kCut.size());
  return shortened;
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  if (absl::IsInternal(status) || absl::IsUnknown(status)) {
    spdlog::error("internal error: {}", status.ToString());
    return {grpc::StatusCode::INTERNAL, "internal error; the server's log says more"};
  }
  return {static_cast<grpc::StatusCode>(status.code()), Shortened(status.message())};
}

grpc::Status EndOfCall(const absl::Status& status, grpc::CallbackServerContext& context) {
  if (absl::IsResourceExhausted(status)) {
    // Where nobody knows better: a second is about what a queue needs to move, and short beside a forward pass.
    const std::string retry(status.GetPayload(kRetryAfterPayload).value_or(absl::Cord("1000")));
    context.AddTrailingMetadata("grpc-retry-pushback-ms", retry);
  }
  return ToGrpcStatus(status);
}

}  // namespace ditserve
