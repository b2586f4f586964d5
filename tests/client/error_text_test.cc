#include "client/ditctl/error_text.h"

#include <gtest/gtest.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace ditserve::ditctl {
namespace {

template <typename Detail>
grpc::Status With(grpc::StatusCode code, const std::string& message, const Detail& detail) {
  google::rpc::Status rich;
  rich.set_code(code);
  rich.set_message(message);
  rich.add_details()->PackFrom(detail);
  return {code, message, rich.SerializeAsString()};
}

google::rpc::BadRequest Field(const std::string& field) {
  google::rpc::BadRequest bad_request;
  bad_request.add_field_violations()->set_field(field);
  return bad_request;
}

google::rpc::RetryInfo RetryAfter(int64_t seconds, int32_t nanos = 0) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(seconds);
  retry.mutable_retry_delay()->set_nanos(nanos);
  return retry;
}

std::string Text(const grpc::Status& status) { return ErrorText(status, "here:1"); }

TEST(ErrorTextTest, AnAddressThatDoesNotAnswer) {
  EXPECT_EQ(Text({grpc::UNAVAILABLE, "failed to connect to all addresses"}),
            "ditctl: UNAVAILABLE: failed to connect to all addresses\n"
            "  is the server running and ready at here:1? see `ditctl health`\n");
}

TEST(ErrorTextTest, AModelThatIsNotLoadedYet) {
  EXPECT_EQ(Text(With(grpc::UNAVAILABLE, "model: x", RetryAfter(1))),
            "ditctl: UNAVAILABLE: model: x\n"
            "  try again once it is loaded: `ditctl forward --wait-seconds N` waits for that\n");
}

TEST(ErrorTextTest, ANameThatIsNotFound) {
  EXPECT_EQ(Text(With(grpc::NOT_FOUND, "x", Field("profile"))), "ditctl: NOT_FOUND: x\n  see `ditctl profiles`\n");
  EXPECT_EQ(Text(With(grpc::NOT_FOUND, "x", Field("model"))), "ditctl: NOT_FOUND: x\n  see `ditctl models`\n");
  EXPECT_EQ(Text(With(grpc::NOT_FOUND, "x", Field("device"))), "ditctl: NOT_FOUND: x\n  see `ditctl residency`\n");
  EXPECT_EQ(Text({grpc::NOT_FOUND, "profile: unknown"}), "ditctl: NOT_FOUND: profile: unknown\n");
}

TEST(ErrorTextTest, AServerThatIsFull) {
  EXPECT_EQ(Text(With(grpc::RESOURCE_EXHAUSTED, "64 requests are waiting", RetryAfter(41, 2'000'000))),
            "ditctl: RESOURCE_EXHAUSTED: 64 requests are waiting\n"
            "  the server is full now: try again in about 42 s, or lower what the request takes\n");
}

TEST(ErrorTextTest, AMessageThatIsTooLarge) {
  EXPECT_EQ(Text({grpc::RESOURCE_EXHAUSTED, "in gRPC's own words"}),
            "ditctl: RESOURCE_EXHAUSTED: in gRPC's own words\n"
            "  send less at a time, or raise the limit: max_receive_message_bytes where no other is named\n");
}

TEST(ErrorTextTest, ARequestThatCanNeverRun) {
  google::rpc::QuotaFailure failure;
  google::rpc::QuotaFailure::Violation& violation = *failure.add_violations();
  violation.set_description("described");
  EXPECT_EQ(Text(With(grpc::FAILED_PRECONDITION, "too large", failure)),
            "ditctl: FAILED_PRECONDITION: too large\n"
            "  this server can never run the request as it is: described; `ditctl plan` tells what can\n");
  violation.set_quota_value(int64_t{2} << 30);
  (*violation.mutable_quota_dimensions())["memory"] = "device";
  (*violation.mutable_quota_dimensions())["needed_bytes"] = "3221225472";
  EXPECT_EQ(
      Text(With(grpc::FAILED_PRECONDITION, "too large", failure)),
      "ditctl: FAILED_PRECONDITION: too large\n"
      "  this server can never run the request as it is: it needs 3.0 GiB of device memory, the budget is 2.0 GiB; "
      "`ditctl plan` tells what can\n");
}

TEST(ErrorTextTest, DetailsThatAreDamagedAreNone) {
  EXPECT_EQ(Text({grpc::NOT_FOUND, "x", "\xff\xff"}), "ditctl: NOT_FOUND: x\n");
}

TEST(ErrorTextTest, EveryOtherCode) {
  EXPECT_EQ(Text({grpc::FAILED_PRECONDITION, "x"}), "ditctl: FAILED_PRECONDITION: x\n");
  EXPECT_EQ(Text(With(grpc::INVALID_ARGUMENT, "height: 17", Field("height"))),
            "ditctl: INVALID_ARGUMENT: height: 17\n");
  EXPECT_EQ(Text({grpc::UNAUTHENTICATED, "x"}),
            "ditctl: UNAUTHENTICATED: x\n  name a file that holds the server's token: --token-file\n");
  EXPECT_EQ(Text({grpc::DEADLINE_EXCEEDED, "late"}),
            "ditctl: DEADLINE_EXCEEDED: late\n"
            "  the server at here:1 took too long; `ditctl forward` waits --deadline-seconds\n");
  EXPECT_EQ(Text({grpc::DATA_LOSS, "shard 3"}),
            "ditctl: DATA_LOSS: shard 3\n"
            "  the checkpoint changed underneath the server: restore it and restart the server\n");
  EXPECT_EQ(Text({grpc::UNIMPLEMENTED, ""}),
            "ditctl: UNIMPLEMENTED: \n  what listens at here:1 is no ditserve of this version, or its other port\n");
  EXPECT_EQ(Text({grpc::INTERNAL, "ours"}), "ditctl: INTERNAL: ours\n  a fault of the server: its log says more\n");
  EXPECT_EQ(Text({grpc::CANCELLED, "gone"}), "ditctl: CANCELLED: gone\n");
}

}  // namespace
}  // namespace ditserve::ditctl
