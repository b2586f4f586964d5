// What the engine predicts, against what it then does.
#include <gmock/gmock.h>

#include <algorithm>

#include "core/base/error_details.h"
#include "tests/server/engine/local_engine_fixture.h"

namespace ditserve {
namespace {

using ::testing::HasSubstr;

class LocalEnginePlanTest : public LocalEngineTest {
 protected:
  static PlanCall Ask(const ForwardCall& forward, int riders = 1) {
    return {forward.model, ShapeOf(forward.inputs), forward.profile, riders};
  }

  // Within a twentieth.
  static void ExpectNear(int64_t predicted, int64_t measured, const std::string& what) {
    EXPECT_NEAR(static_cast<double>(predicted), static_cast<double>(measured), 0.05 * static_cast<double>(measured))
        << what;
  }
};

TEST_F(LocalEnginePlanTest, PredictsTheBytesThatAreMovedAndThePeakOfEachShippedProfile) {
  const auto probe = MakeEngine();
  const int64_t model_bytes = probe->Models()[0].stored_bytes;
  for (const Profile& profile : profiles_) {
    for (const int64_t budget : {model_bytes / 2 + (12 << 20), int64_t{64} << 20}) {
      const auto engine = MakeEngine(budget);
      const ForwardCall call = MakeCall(profile);
      const absl::StatusOr<ForwardPlan> plan = engine->Plan(Ask(call));
      ASSERT_THAT(plan, IsOk());
      for (const PlannedPass* pass : {&plan->first, &plan->repeated}) {
        const auto flight = Send(*engine, call);
        ASSERT_THAT(flight->Wait(), IsOk());
        const ForwardAccount& account = flight->result->account;
        const std::string what = profile.name + (pass == &plan->first ? ", first" : ", repeated");
        ExpectNear(pass->disk_read_bytes, account.disk_read_bytes, what);
        ExpectNear(pass->device_copy_bytes, account.device_copy_bytes, what);
        EXPECT_LE(account.peak_device_bytes, pass->device.total_bytes() * 21 / 20) << what;
      }
    }
  }
}

TEST_F(LocalEnginePlanTest, TellsNoTimeBeforeOneWasMeasured) {
  const auto engine = MakeEngine();
  const ForwardCall call = MakeCall(ProfileNamed("disk"));
  const absl::StatusOr<ForwardPlan> before = engine->Plan(Ask(call));
  ASSERT_THAT(before, IsOk());
  EXPECT_FALSE(before->repeated.time.has_value());
  EXPECT_FALSE(before->repeated.computing.has_value());
  EXPECT_FALSE(before->paces.computed.has_value());
  Output(*engine, call);
  const absl::StatusOr<ForwardPlan> after = engine->Plan(Ask(MakeCall(ProfileNamed("resident"), 128, 64)));
  ASSERT_THAT(after, IsOk());
  EXPECT_TRUE(after->repeated.time.has_value());
  EXPECT_EQ(after->repeated.time, after->repeated.computing) << "nothing is moved";
  EXPECT_EQ(after->paces.computed, ShapeOf(call.inputs));
}

TEST_F(LocalEnginePlanTest, ARefusalIsWhatForwardSays) {
  const auto engine = MakeEngine(12 << 20);
  const ForwardCall call = MakeCall(ProfileNamed("disk"), 2048, 2048);
  PlanCall asked = Ask(call);
  asked.others = profiles_;
  const absl::StatusOr<ForwardPlan> plan = engine->Plan(asked);
  ASSERT_THAT(plan, IsOk());
  const auto flight = Send(*engine, call);
  const absl::Status refused = flight->Wait().status();
  EXPECT_EQ(plan->refusal.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(plan->refusal.message(), refused.message());
  ASSERT_TRUE(ShortageOf(refused).has_value());
  EXPECT_EQ(plan->activation_bytes + plan->window_bytes, ShortageOf(refused)->needed_bytes);
  ASSERT_FALSE(plan->offers.empty());
  const PlanOffer& offer = plan->offers.back();
  ASSERT_TRUE(offer.shape.has_value());
  EXPECT_THAT(std::string(refused.message()), HasSubstr(std::to_string(offer.shape->width) + "x" +
                                                        std::to_string(offer.shape->height) + " pixels fit"));
  Output(*engine, MakeCall(ProfileNamed("disk"), offer.shape->height, offer.shape->width));
}

TEST_F(LocalEnginePlanTest, OffersWhatMovesLessAndSaysWhetherTheValuesStay) {
  const auto engine = MakeEngine();
  PlanCall asked = Ask(MakeCall(ProfileNamed("disk")));
  asked.others = profiles_;
  const absl::StatusOr<ForwardPlan> plan = engine->Plan(asked);
  ASSERT_THAT(plan, IsOk());
  const auto offered = [&](const std::string& name) {
    return std::find_if(plan->offers.begin(), plan->offers.end(),
                        [&](const PlanOffer& o) { return o.profile == name; });
  };
  ASSERT_NE(offered("resident"), plan->offers.end());
  EXPECT_TRUE(offered("resident")->equal_values);
  EXPECT_EQ(offered("resident")->repeated.disk_read_bytes, 0);
  ASSERT_NE(offered("fp8-host"), plan->offers.end());
  EXPECT_FALSE(offered("fp8-host")->equal_values);
  EXPECT_EQ(offered("disk"), plan->offers.end());
  EXPECT_TRUE(
      std::none_of(plan->offers.begin(), plan->offers.end(), [](const PlanOffer& o) { return o.shape.has_value(); }));

  asked.profile = ProfileNamed("resident");
  const absl::StatusOr<ForwardPlan> best = engine->Plan(asked);
  ASSERT_THAT(best, IsOk());
  EXPECT_TRUE(best->offers.empty()) << "nothing moves less than nothing";
}

TEST_F(LocalEnginePlanTest, OffersToTakeTheLimitAway) {
  const auto engine = MakeEngine();
  const absl::StatusOr<ForwardPlan> plan = engine->Plan(Ask(MakeCall(ProfileNamed("disk"))));
  ASSERT_THAT(plan, IsOk());
  EXPECT_GT(plan->repeated.disk_read_bytes, 0);
  ASSERT_EQ(plan->offers.size(), 1u);
  EXPECT_TRUE(plan->offers[0].without_limit);
  EXPECT_EQ(plan->offers[0].repeated.disk_read_bytes, 0);
}

TEST_F(LocalEnginePlanTest, OffersASizeAtWhichAllRideAtOnce) {
  const auto roomy = MakeEngine(int64_t{1} << 30);
  const ForwardCall call = MakeCall(ProfileNamed("disk"), 1024, 1024);
  const absl::StatusOr<ForwardPlan> alone = roomy->Plan(Ask(call));
  ASSERT_THAT(alone, IsOk());
  const auto engine = MakeEngine(2 * alone->activation_bytes + alone->window_bytes);
  const absl::StatusOr<ForwardPlan> plan = engine->Plan(Ask(call, 3));
  ASSERT_THAT(plan, IsOk());
  EXPECT_LT(plan->repeated.most_riders, 3);
  ASSERT_FALSE(plan->offers.empty());
  ASSERT_TRUE(plan->offers.back().shape.has_value());
  EXPECT_EQ(plan->offers.back().repeated.most_riders, 3);
}

TEST_F(LocalEnginePlanTest, ReadsNothingAndHoldsNothing) {
  const auto engine = MakeEngine();
  ASSERT_THAT(engine->Plan(Ask(MakeCall(ProfileNamed("dynamic")), 4)), IsOk());
  const ResidencySnapshot residency = engine->Residency();
  EXPECT_EQ(residency.devices[0].memory.usage.peak_bytes, 0);
  EXPECT_EQ(residency.transfers[0].bytes, 0);
}

TEST_F(LocalEnginePlanTest, ThereIsNoPlanForAModelThatIsNotThere) {
  const auto engine = MakeEngine();
  PlanCall asked = Ask(MakeCall(ProfileNamed("disk")));
  asked.model = "missing";
  EXPECT_EQ(engine->Plan(asked).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace ditserve
