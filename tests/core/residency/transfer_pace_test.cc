#include "core/residency/transfer_pace.h"

#include <gtest/gtest.h>

namespace ditserve {
namespace {

TEST(TransferPaceTest, KnowsNothingBeforeSomethingWasRead) {
  TransferPace pace;
  pace.Begin(absl::Seconds(1), {0, 0});
  pace.End(absl::Seconds(2), {0, 0});
  EXPECT_FALSE(pace.speeds().checkpoint.has_value());
  EXPECT_FALSE(pace.speeds().copies.has_value());
}

TEST(TransferPaceTest, CountsOnlyWhatIsReadWhileEverybodyWaits) {
  TransferPace pace;
  pace.Begin(absl::Seconds(1), {0, 0});
  pace.End(absl::Seconds(2), {100, 0});
  pace.Begin(absl::Seconds(9), {900, 0});  // Beside computing.
  pace.End(absl::Seconds(10), {1200, 0});
  EXPECT_EQ(pace.speeds().checkpoint, 200);
  EXPECT_FALSE(pace.speeds().copies.has_value());
}

TEST(TransferPaceTest, AWaitThatWasNotForTransfersDoesNotCount) {
  TransferPace pace;
  pace.Begin(absl::Seconds(1), {0, 0});
  pace.Drop();
  pace.End(absl::Seconds(50), {100, 0});
  EXPECT_FALSE(pace.speeds().checkpoint.has_value());
}

TEST(TransferPaceTest, TellsCopiesFromTheCheckpointAndLeavesOutWhatIsMixed) {
  TransferPace pace;
  pace.Begin(absl::Seconds(0), {0, 0});
  pace.End(absl::Seconds(1), {100, 0});
  pace.Begin(absl::Seconds(1), {100, 0});
  pace.End(absl::Seconds(2), {100, 700});
  pace.Begin(absl::Seconds(2), {100, 700});
  pace.End(absl::Seconds(3), {400, 800});
  EXPECT_EQ(pace.speeds().checkpoint, 100);
  EXPECT_EQ(pace.speeds().copies, 700);
}

TEST(TransferPaceTest, OlderReadsCountLess) {
  TransferPace pace;
  int64_t read = 0;
  absl::Duration now;
  const auto wait = [&](int64_t bytes, absl::Duration time) {
    pace.Begin(now, {read, 0});
    read += bytes;
    now += time;
    pace.End(now, {read, 0});
  };
  wait(TransferPace::kRememberedBytes, absl::Seconds(100));
  for (int i = 0; i < 20; ++i) wait(TransferPace::kRememberedBytes, absl::Seconds(1));
  EXPECT_NEAR(*pace.speeds().checkpoint, TransferPace::kRememberedBytes, 1e-3 * TransferPace::kRememberedBytes);
}

}  // namespace
}  // namespace ditserve
