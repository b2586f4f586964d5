#include "server/rpc/grpc_status.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "core/base/error_details.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace ditserve {
namespace {

TEST(GrpcStatusTest, KeepsCodeAndMessage) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  for (int code = 1; code <= 16; ++code) {
    if (code == static_cast<int>(absl::StatusCode::kInternal) || code == static_cast<int>(absl::StatusCode::kUnknown)) {
      continue;
    }
    const grpc::Status status = ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "why"));
    EXPECT_EQ(status.error_code(), code);
    EXPECT_EQ(status.error_message(), "why");
  }
}

TEST(GrpcStatusTest, SaysNothingOfAnInternalErrorsCause) {
  for (const absl::Status& ours : {absl::InternalError("/secret/file.cc:12"), absl::UnknownError("/secret/file.cc")}) {
    const grpc::Status status = ToGrpcStatus(ours);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
    EXPECT_EQ(status.error_message(), "internal error; the server's log says more");
  }
}

template <typename Detail>
std::optional<Detail> DetailOf(const absl::Status& error) {
  google::rpc::Status rich;
  EXPECT_TRUE(rich.ParseFromString(ToGrpcStatus(error).error_details()));
  std::optional<Detail> found;
  for (const google::protobuf::Any& any : rich.details()) {
    Detail detail;
    if (!any.UnpackTo(&detail)) continue;
    EXPECT_FALSE(found.has_value());
    found = detail;
    EXPECT_EQ(rich.code(), static_cast<int>(error.code()));
    EXPECT_EQ(rich.message(), ToGrpcStatus(error).error_message());
  }
  return found;
}

TEST(GrpcStatusTest, TellsTheFieldThatIsWrong) {
  const absl::Status error = FieldError("latents.shape", "[1], expected 4 dimensions");
  EXPECT_EQ(ToGrpcStatus(error).error_message(), "latents.shape: [1], expected 4 dimensions");
  const auto detail = DetailOf<google::rpc::BadRequest>(error);
  ASSERT_TRUE(detail.has_value());
  EXPECT_EQ(detail->ShortDebugString(),
            "field_violations { field: \"latents.shape\" description: \"[1], expected 4 dimensions\" }");
  EXPECT_FALSE(DetailOf<google::rpc::RetryInfo>(error).has_value());
  EXPECT_FALSE(DetailOf<google::rpc::QuotaFailure>(error).has_value());
}

TEST(GrpcStatusTest, TellsTheMemoryAndTheBytesThatAreMissing) {
  const auto detail = DetailOf<google::rpc::QuotaFailure>(
      WithShortage(absl::FailedPreconditionError("too much"), {Memory::kHost, 300, 200}));
  ASSERT_TRUE(detail.has_value());
  ASSERT_EQ(detail->violations_size(), 1);
  const google::rpc::QuotaFailure::Violation& violation = detail->violations(0);
  EXPECT_EQ(violation.subject(), "memory:host");
  EXPECT_EQ(violation.description(), "too much");
  EXPECT_EQ(violation.quota_value(), 200);
  EXPECT_EQ(violation.quota_dimensions().at("memory"), "host");
  EXPECT_EQ(violation.quota_dimensions().at("needed_bytes"), "300");
}

TEST(GrpcStatusTest, TellsWhenToTryAgain) {
  const auto known =
      DetailOf<google::rpc::RetryInfo>(WithRetryAfter(absl::UnavailableError("loading"), absl::Milliseconds(1500)));
  ASSERT_TRUE(known.has_value());
  EXPECT_EQ(known->retry_delay().seconds(), 1);
  EXPECT_EQ(known->retry_delay().nanos(), 500'000'000);
  const auto usual = DetailOf<google::rpc::RetryInfo>(absl::ResourceExhaustedError("full"));
  ASSERT_TRUE(usual.has_value());
  EXPECT_EQ(usual->retry_delay().seconds(), 1);
}

TEST(GrpcStatusTest, AnErrorAboutNothingHasNoDetails) {
  EXPECT_EQ(ToGrpcStatus(absl::UnavailableError("stopping")).error_details(), "");
  EXPECT_EQ(ToGrpcStatus(FieldError("x", "secret", absl::StatusCode::kInternal)).error_details(), "");
}

// What clients take of headers and trailers is 8 KiB: the message, percent-encoded, and the details, in base64.
TEST(GrpcStatusTest, TheLongestErrorFitsIntoTrailers) {
  const absl::Status error = WithRetryAfter(
      WithShortage(FieldError(std::string(100'000, 'f'), std::string(100'000, '\n')), {Memory::kDevice, 1, 2}),
      absl::Hours(1));
  const grpc::Status told = ToGrpcStatus(error);
  EXPECT_LE(3 * told.error_message().size() + told.error_details().size() * 4 / 3, 7800u);
}

TEST(GrpcStatusTest, CutsALongMessageBetweenCharacters) {
  std::string message = "x";
  while (message.size() < 100'000) message += "\u00e9";
  const std::string cut = ToGrpcStatus(absl::NotFoundError(message)).error_message();
  ASSERT_LE(cut.size(), 960u);
  EXPECT_GE(cut.size(), 952u);
  EXPECT_EQ(cut.substr(cut.size() - 5), "\u00e9...");
}

}  // namespace
}  // namespace ditserve
