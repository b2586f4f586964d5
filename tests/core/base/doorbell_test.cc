#include "core/base/doorbell.h"

#include <gtest/gtest.h>

#include <thread>

namespace ditserve {
namespace {

TEST(DoorbellTest, ARingEndsTheWaitThatFollowsAndNoOther) {
  Doorbell bell;
  bell.Ring();
  bell.Ring();
  bell.WaitFor(absl::InfiniteDuration());
  bell.WaitFor(absl::Milliseconds(1));  // Ends by itself.
  bell.WaitFor(-absl::InfiniteDuration());
}

TEST(DoorbellTest, ARingEndsAWait) {
  Doorbell bell;
  std::thread sleeper([&] { bell.WaitFor(absl::InfiniteDuration()); });
  bell.Ring();
  sleeper.join();
}

}  // namespace
}  // namespace ditserve
