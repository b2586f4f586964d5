#include "server/engine/pass_meter.h"

#include <gmock/gmock.h>

#include "tests/testing/fake_clock.h"
#include "tests/testing/fake_device.h"

namespace ditserve {
namespace {

using ::testing::ElementsAre;

// Transfers work beside operations, and without them.
class PassMeterTest : public ::testing::Test {
 protected:
  void Compute(ModuleIndex module, int seconds, int held_up_seconds) {
    EXPECT_TRUE(meter_.GoOn(module).ok());
    Passes(seconds, held_up_seconds);
    EXPECT_TRUE(meter_.Pause(module + 1).ok());
  }
  void Passes(int seconds, int held_up_seconds) {
    clock_.Advance(absl::Seconds(seconds));
    held_up_ += absl::Seconds(held_up_seconds);
  }

  FakeClock clock_;
  FakeDevice device_{/*computes_in_host_memory=*/true};
  Executor executor_{[] {}, &clock_};
  absl::Duration held_up_;
  OperationQueue operations_{&device_, &executor_, &clock_, [this] { return held_up_; }};
  const std::vector<ModuleSpec> specs_{3};
  PassMeter meter_{&operations_, &specs_};
};

TEST_F(PassMeterTest, WhatHeldOperationsUpIsNoPartOfWhatTheyTake) {
  Compute(0, 6, 4);
  Passes(10, 10);  // Its weights are waited for.
  Compute(1, 4, 1);
  EXPECT_TRUE(meter_.End().ok());
  EXPECT_THAT(meter_.modules(), ElementsAre(absl::Seconds(6), absl::Seconds(4), absl::ZeroDuration()));
  EXPECT_THAT(meter_.undisturbed(), ElementsAre(absl::Seconds(3), absl::Seconds(2), absl::ZeroDuration()));
}

TEST_F(PassMeterTest, OperationsThatAreSaidToHaveBeenHeldUpAllTheTimeTakeNone) {
  Compute(0, 2, 3);
  EXPECT_TRUE(meter_.End().ok());
  EXPECT_THAT(meter_.undisturbed(), ElementsAre(absl::ZeroDuration(), absl::ZeroDuration(), absl::ZeroDuration()));
}

}  // namespace
}  // namespace ditserve
