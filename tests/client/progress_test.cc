#include "client/ditctl/progress.h"

#include <gtest/gtest.h>

#include <sstream>

namespace ditserve::ditctl {
namespace {

constexpr absl::Time kBegin = absl::UnixEpoch();

TEST(ProgressTest, WritesOneLineForEachTenth) {
  std::ostringstream out;
  {
    Progress progress(out, /*terminal=*/false);
    for (int done = 0; done <= 1000; ++done) progress.Show(done, 1000, std::to_string(done), kBegin);
  }
  EXPECT_EQ(out.str(),
            " 10%  100\n 20%  200\n 30%  300\n 40%  400\n 50%  500\n"
            " 60%  600\n 70%  700\n 80%  800\n 90%  900\n100%  1000\n");
}

TEST(ProgressTest, DrawsABarOverItselfOnATerminal) {
  std::ostringstream out;
  {
    Progress progress(out, /*terminal=*/true);
    progress.Show(0, 4, "waiting", kBegin);
    progress.Show(1, 4, "module 1 of 4", kBegin + absl::Seconds(10));
  }
  EXPECT_EQ(out.str(),
            "\r[..............................]   0%  waiting\x1b[K"
            "\r[#######.......................]  25%  module 1 of 4, 30 s left\x1b[K\n");
}

TEST(ProgressTest, TimeInTheQueueIsNoPartOfTheTimeLeft) {
  std::ostringstream out;
  Progress progress(out, /*terminal=*/true);
  progress.Show(0, 2, "", kBegin);
  progress.Show(0, 2, "", kBegin + absl::Seconds(100));
  out.str("");
  progress.Show(1, 2, "x", kBegin + absl::Seconds(105));
  EXPECT_EQ(out.str(), "\r[###############...............]  50%  x, 5 s left\x1b[K");
}

TEST(ProgressTest, StandsWhatCannotBe) {
  std::ostringstream out;
  Progress progress(out, /*terminal=*/true);
  progress.Show(5, 0, "", kBegin);
  progress.Show(-5, 10, "", kBegin);
  out.str("");
  progress.Show(50, 10, "x", kBegin);
  EXPECT_EQ(out.str(), "\r[##############################] 100%  x, 0 s left\x1b[K");
}

}  // namespace
}  // namespace ditserve::ditctl
