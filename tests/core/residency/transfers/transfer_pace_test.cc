#include "core/residency/transfers/transfer_pace.h"

#include <gtest/gtest.h>

namespace ditserve {
namespace {

// Each waits from when the one before it had what it waited for.
class TransferPaceTest : public ::testing::Test {
 protected:
  void Wait(const Transferred& more, absl::Duration time) {
    pace_.Begin(now_, done_);
    done_ = {done_.checkpoint_bytes + more.checkpoint_bytes, done_.copy_bytes + more.copy_bytes,
             done_.work + more.work};
    now_ += time;
    pace_.End(now_, done_);
  }

  TransferPace pace_{2};
  Transferred done_;
  absl::Duration now_ = absl::Seconds(1);
};

TEST_F(TransferPaceTest, KnowsNothingBeforeSomethingWasRead) {
  Wait({}, absl::Seconds(1));
  EXPECT_FALSE(pace_.checkpoint().has_value());
}

TEST_F(TransferPaceTest, CountsOnlyWhatIsReadWhileEverybodyWaits) {
  Wait({.checkpoint_bytes = 100}, absl::Seconds(1));
  done_.checkpoint_bytes += 800;  // Beside computing.
  now_ += absl::Seconds(7);
  Wait({.checkpoint_bytes = 300}, absl::Seconds(3));
  EXPECT_EQ(pace_.checkpoint(), 0.01);
}

TEST_F(TransferPaceTest, AWaitThatWasNotForTransfersDoesNotCount) {
  pace_.Begin(now_, done_);
  pace_.Drop();
  pace_.End(now_ + absl::Seconds(49), {.checkpoint_bytes = 100});
  EXPECT_FALSE(pace_.checkpoint().has_value());
}

TEST_F(TransferPaceTest, WhatWasReadBesideCopiesDoesNotCount) {
  Wait({.checkpoint_bytes = 100}, absl::Seconds(1));
  Wait({.checkpoint_bytes = 100, .copy_bytes = 1}, absl::Seconds(50));
  EXPECT_EQ(pace_.checkpoint(), 0.01);
}

TEST_F(TransferPaceTest, WhatThreadsWorkIsNotTheCheckpoints) {
  Wait({.checkpoint_bytes = 100, .work = absl::Seconds(6)}, absl::Seconds(4));
  EXPECT_EQ(pace_.checkpoint(), 0.01) << "two processors work";
  Wait({.checkpoint_bytes = 100, .work = absl::Seconds(60)}, absl::Seconds(4));
  EXPECT_EQ(pace_.checkpoint(), 0) << "and there is nothing else that takes time";
}

TEST_F(TransferPaceTest, OlderReadsCountLess) {
  Wait({.checkpoint_bytes = TimedBytes::kRemembered}, absl::Seconds(100));
  for (int i = 0; i < 20; ++i) Wait({.checkpoint_bytes = TimedBytes::kRemembered}, absl::Seconds(1));
  EXPECT_NEAR(*pace_.checkpoint() * TimedBytes::kRemembered, 1, 1e-3);
}

}  // namespace
}  // namespace ditserve
