#include "server/rpc/grpc_status.h"

#include <gtest/gtest.h>

#include <string>

#include "server/rpc/call_slots.h"

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

TEST(GrpcStatusTest, CutsALongMessageBetweenCharacters) {
  std::string message = "x";
  while (message.size() < 100'000) message += "\u00e9";
  const std::string cut = ToGrpcStatus(absl::NotFoundError(message)).error_message();
  ASSERT_LE(cut.size(), 2048u);
  EXPECT_GE(cut.size(), 2040u);
  EXPECT_EQ(cut.substr(cut.size() - 5), "\u00e9...");
}

TEST(CallSlotsTest, GivesOutNoMoreThanItsLimit) {
  CallSlots slots(2);
  const CallSlots::Slot first = slots.Take();
  CallSlots::Slot second = slots.Take();
  EXPECT_TRUE(first);
  EXPECT_TRUE(second);
  EXPECT_FALSE(slots.Take());
  second = {};
  EXPECT_TRUE(slots.Take());
  EXPECT_TRUE(slots.Take());
}

}  // namespace
}  // namespace ditserve
