#include "server/rpc/patience.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

TEST(WhyCancelledTest, AClientWithTimeLeftHasLeft) {
  EXPECT_TRUE(absl::IsCancelled(WhyCancelled(absl::Seconds(60), absl::Seconds(1))));
  EXPECT_TRUE(absl::IsCancelled(WhyCancelled(absl::Milliseconds(50), absl::Milliseconds(25))));
}

TEST(WhyCancelledTest, AClientWithoutADeadlineHasLeft) {
  EXPECT_TRUE(absl::IsCancelled(WhyCancelled(absl::InfiniteDuration(), absl::InfiniteDuration())));
}

TEST(WhyCancelledTest, TheTimeIsUpAtTheDeadline) {
  EXPECT_TRUE(absl::IsDeadlineExceeded(WhyCancelled(absl::Seconds(60), absl::ZeroDuration())));
  EXPECT_TRUE(absl::IsDeadlineExceeded(WhyCancelled(absl::Seconds(60), absl::Seconds(-1))));
  EXPECT_TRUE(absl::IsDeadlineExceeded(WhyCancelled(absl::Seconds(-1), absl::Seconds(-2)))) << "before it began";
}

// Its clock, the network, and what gRPC tells of a deadline.
TEST(WhyCancelledTest, TheTimeIsUpForAClientThatGivesUpALittleBeforeOurClock) {
  EXPECT_TRUE(absl::IsDeadlineExceeded(WhyCancelled(absl::Milliseconds(50), absl::Milliseconds(20))));
  EXPECT_TRUE(absl::IsDeadlineExceeded(WhyCancelled(absl::Seconds(60), absl::Milliseconds(610))));
}

}  // namespace
}  // namespace ditserve
