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

// Each waits from when the one before it had what it waited for.
void Wait(TransferPace& pace, absl::Duration& now, MovedBytes& moved, const MovedBytes& more, absl::Duration time) {
  pace.Begin(now, moved);
  moved = {moved.checkpoint + more.checkpoint, moved.copies + more.copies, moved.fresh + more.fresh};
  now += time;
  pace.End(now, moved);
}

TEST(TransferPaceTest, TellsWhatFreshMemoryTakesFromWhatReadingTakes) {
  TransferPace pace;
  MovedBytes moved;
  absl::Duration now;
  Wait(pace, now, moved, {.checkpoint = 300, .fresh = 100},
       absl::Seconds(5));  // Before anybody knows how fast one reads.
  Wait(pace, now, moved, {.checkpoint = 100}, absl::Seconds(1));
  Wait(pace, now, moved, {.checkpoint = 100, .fresh = 100}, absl::Seconds(3));
  EXPECT_EQ(pace.speeds().checkpoint, 100);
  EXPECT_EQ(pace.speeds().fresh, 200 / (2.0 + 2.0));
  Wait(pace, now, moved, {.copies = 1000}, absl::Seconds(1));
  Wait(pace, now, moved, {.copies = 1000, .fresh = 600}, absl::Seconds(5));
  EXPECT_EQ(pace.speeds().copies, 1000);
  EXPECT_EQ(pace.speeds().fresh, 800 / (2.0 + 2.0 + 4.0));
}

TEST(TransferPaceTest, WhereAllMemoryWasFreshThatIsHowFastOneReads) {
  TransferPace pace;
  MovedBytes moved;
  absl::Duration now;
  Wait(pace, now, moved, {.checkpoint = 100, .fresh = 100}, absl::Seconds(2));
  EXPECT_EQ(pace.speeds().checkpoint, 50);
  EXPECT_FALSE(pace.speeds().fresh.has_value());
}

TEST(TransferPaceTest, FreshMemoryThatTookNoLongerIsToldOfNothing) {
  TransferPace pace;
  MovedBytes moved;
  absl::Duration now;
  Wait(pace, now, moved, {.checkpoint = 100}, absl::Seconds(1));
  Wait(pace, now, moved, {.checkpoint = 100, .fresh = 100}, absl::Seconds(1));
  EXPECT_FALSE(pace.speeds().fresh.has_value());
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
