#include "server/exit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "absl/status/status.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

using ::testing::ExitedWithCode;

const absl::Status kLost = absl::UnavailableError("cuda:0 is lost: it fell from the bus");
constexpr char kTold[] = "ditserve: cuda:0 is lost: it fell from the bus\n";

class ExitTest : public ::testing::Test {
 protected:
  const TempFolder folder_;
  const std::string termination_log_ = folder_ / "termination-log";
};

TEST_F(ExitTest, WhyThereIsNoServerStandsInTheTerminationMessage) {
  WriteFile(termination_log_, "what was there before, and is longer than what comes in its place, by far");
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(FailToServe(kLost, kWrongUsage, termination_log_), kWrongUsage);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), kTold);
  EXPECT_EQ(ReadWholeFile(termination_log_), kTold);
}

TEST_F(ExitTest, NoTerminationMessageIsMadeWhereNobodyLooksForOne) {
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(FailToServe(kLost, kFailed, termination_log_), kFailed);
  EXPECT_EQ(FailToServe(kLost, kFailed, folder_.path()), kFailed);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), std::string(kTold) + kTold);
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

TEST_F(ExitTest, WhatIsNoServerTellsOnStandardErrorAlone) {
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(Fail(kLost, kFailed), kFailed);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), kTold);
}

TEST_F(ExitTest, AProcessThatEndsAtOnceTellsWhy) {
  WriteFile(termination_log_, "");
  EXPECT_EXIT(EndAtOnce(kLost, termination_log_), ExitedWithCode(kFailed), kTold);
  EXPECT_EQ(ReadWholeFile(termination_log_), kTold);
}

}  // namespace
}  // namespace ditserve
