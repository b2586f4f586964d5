// Laps that decide on the way to pass over some of their modules.
#include "tests/core/residency/policy/policy_fixture.h"

namespace ditserve {
namespace {

class PassOverTest : public PolicyTest {
 protected:
  // The second lap of a rider of four modules, which may pass over all but the first.
  PolicyRider& Begin() {
    Make({10, 10, 10, 10}, 1000);
    PolicyRider& first = Join(Request(1));
    PolicyRider& lap = **policy_->JoinLap(first, Request(0).routes, /*undecided=*/1, now_, actions_);
    while (!first.passed_all()) Release(first, Get(first));
    policy_->Leave(first, now_, actions_, 0, &lap);
    ArriveAll();
    return lap;
  }
  std::optional<Pin> AcquireAt(PolicyRider& rider, ModuleIndex module) {
    return *policy_->Acquire(rider, module, now_, actions_);
  }
};

TEST_F(PassOverTest, WhatMayBePassedOverIsNotLoadedBeforeItIsTaken) {
  PolicyRider& lap = Begin();
  EXPECT_NE(CopyOf(weights_, 0), nullptr);
  Release(lap, Get(lap));
  ArriveAll();
  for (const ModuleIndex module : {1, 2, 3}) EXPECT_EQ(CopyOf(weights_, module), nullptr) << "it is not decided";
  EXPECT_EQ(Acquire(lap), std::nullopt);
  ArriveAll();
  for (const ModuleIndex module : {1, 2, 3}) EXPECT_NE(CopyOf(weights_, module), nullptr) << "it is";
}

TEST_F(PassOverTest, WhatIsPassedOverIsNotLoadedAndTheNextLapBeginsBehindWhatIsTaken) {
  PolicyRider& lap = Begin();
  PolicyRider& next = **policy_->JoinLap(lap, Request(0).routes, /*undecided=*/1, now_, actions_);
  Release(lap, Get(lap));
  EXPECT_EQ(AcquireAt(lap, 3), std::nullopt);
  ArriveAll();
  EXPECT_EQ(CopyOf(weights_, 1), nullptr);
  EXPECT_EQ(CopyOf(weights_, 2), nullptr);
  EXPECT_NE(CopyOf(weights_, 0), nullptr) << "of the next lap, which is near now";
  std::optional<Pin> last = Granted(lap);
  ASSERT_TRUE(last.has_value());
  Release(lap, *std::move(last));
  EXPECT_TRUE(lap.passed_all());
  EXPECT_TRUE(next.riding());
}

TEST_F(PassOverTest, WhatWasThereForItAloneGoesAndWhatOthersNeedStays) {
  PolicyRider& lap = Begin();
  Pin first = Get(lap);
  PolicyRider& other = Join(Request(1));
  ArriveAll();
  Release(other, Get(other));
  ArriveAll();
  Release(other, Get(other));
  ASSERT_NE(CopyOf(weights_, 1), nullptr) << "the lap may need it";
  ASSERT_NE(CopyOf(weights_, 2), nullptr);
  Release(lap, std::move(first));
  const std::optional<Pin> last = AcquireAt(lap, 3);
  EXPECT_EQ(CopyOf(weights_, 1), nullptr);
  EXPECT_NE(CopyOf(weights_, 2), nullptr) << "the other does";
  CheckInvariants();
}

TEST_F(PassOverTest, WhoDecidesAndHasItsModuleAtOnceHasTheNextOnesLoadedMeanwhile) {
  PolicyRider& lap = Begin();
  Policy::JoinRequest second = Request(1);
  for (const ModuleIndex module : {0, 2, 3}) second.routes[static_cast<size_t>(module)] = Route();
  PolicyRider& other = Join(second);
  Pin of_other = Get(other);
  Release(lap, Get(lap));
  ASSERT_TRUE(Take<StartLoad>().empty());
  std::optional<Pin> pin = AcquireAt(lap, 1);
  ASSERT_TRUE(pin.has_value());
  EXPECT_FALSE(Take<StartLoad>().empty());
  Release(other, std::move(of_other));
  Release(lap, *std::move(pin));
}

TEST_F(PassOverTest, WhatIsPassedOverIsNoTimeOfItsOwnAndNoPartOfAPace) {
  PolicyRider& lap = Begin();
  Pin first = Get(lap);
  now_ += absl::Seconds(2);
  policy_->Release(lap, std::move(first), absl::Seconds(2), now_, actions_);
  const double attained = lap.attained_seconds(), pace = policy_->sweeps().pace_seconds(*lap.itinerary);
  std::optional<Pin> last = AcquireAt(lap, 3);
  ArriveAll();
  if (!last) last = Granted(lap);
  ASSERT_TRUE(last.has_value());
  EXPECT_EQ(lap.attained_seconds(), attained) << "it goes before those who computed more";
  const double per_byte = policy_->estimates(Memory::kDevice).computing_per_byte.at(weights_);
  now_ += absl::Seconds(2);
  policy_->Release(lap, *std::move(last), absl::Seconds(2), now_, actions_);
  EXPECT_EQ(policy_->sweeps().pace_seconds(*lap.itinerary), pace) << "it was no whole lap";
  EXPECT_EQ(policy_->estimates(Memory::kDevice).computing_per_byte.at(weights_), per_byte) << "it was no whole pass";
}

}  // namespace
}  // namespace ditserve
