#include "core/base/error_details.h"

#include <gtest/gtest.h>

namespace ditserve {
namespace {

TEST(ErrorDetailsTest, AFieldStandsBeforeTheMessage) {
  const absl::Status status = FieldError("a.b", "found c", absl::StatusCode::kNotFound);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "a.b: found c");
  EXPECT_EQ(FieldOf(status), "a.b");
  EXPECT_EQ(FieldOf(absl::NotFoundError("a.b: found c")), "");
}

TEST(ErrorDetailsTest, AShortageKeepsItsMemoryAndBytes) {
  const auto shortage =
      ShortageOf(WithShortage(absl::FailedPreconditionError("x"), {DeviceMemory(2), int64_t{1} << 60, 7}));
  ASSERT_TRUE(shortage.has_value());
  EXPECT_EQ(shortage->memory, DeviceMemory(2));
  EXPECT_EQ(shortage->needed_bytes, int64_t{1} << 60);
  EXPECT_EQ(shortage->budget_bytes, 7);
  EXPECT_FALSE(ShortageOf(absl::FailedPreconditionError("x")).has_value());
}

TEST(ErrorDetailsTest, ARetryIsKeptToTheMillisecond) {
  EXPECT_EQ(RetryAfterOf(WithRetryAfter(absl::UnavailableError("x"), absl::Microseconds(1'234'567))),
            absl::Milliseconds(1234));
  EXPECT_FALSE(RetryAfterOf(absl::UnavailableError("x")).has_value());
}

TEST(ErrorDetailsTest, AnotherMessageKeepsCodeAndDetails) {
  const absl::Status changed =
      WithMessage(WithRetryAfter(FieldError("a", "b"), absl::Seconds(2)), "with what would be right");
  EXPECT_EQ(changed.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(changed.message(), "with what would be right");
  EXPECT_EQ(FieldOf(changed), "a");
  EXPECT_EQ(RetryAfterOf(changed), absl::Seconds(2));
}

}  // namespace
}  // namespace ditserve
