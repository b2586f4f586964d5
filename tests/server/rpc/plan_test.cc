#include "core/base/error_details.h"
#include "ditserve/v1/model_service.grpc.pb.h"
#include "google/protobuf/util/time_util.h"
#include "tests/server/server_fixture.h"

namespace ditserve {
namespace {

using google::protobuf::util::TimeUtil;
using grpc::StatusCode;

class PlanTest : public ServerTest {
 protected:
  PlanTest() {
    request_.set_height(32);
    request_.set_width(16);
    request_.set_prompt_tokens(3);
    engine_.SetPlanner([this](const PlanCall& call) {
      call_ = call;
      return plan_;
    });
    plan_->device = "cpu";
  }

  grpc::Status Plan() {
    grpc::ClientContext context;
    v1::PlanResponse response;
    const grpc::Status status = models_->Plan(&context, request_, &response);
    told_ = response.plan();
    const auto& trailers = context.GetServerTrailingMetadata();
    const auto pushback = trailers.find("grpc-retry-pushback-ms");
    pushback_ms_ = pushback == trailers.end() ? "" : std::string(pushback->second.data(), pushback->second.size());
    return status;
  }

  const std::unique_ptr<v1::ModelService::Stub> models_ = v1::ModelService::NewStub(channel_);
  v1::PlanRequest request_;
  v1::Plan told_;
  std::string pushback_ms_;  // Empty where there was none.
  PlanCall call_;
  absl::StatusOr<ForwardPlan> plan_ = ForwardPlan();
};

TEST_F(PlanTest, AsksTheEngineForWhatTheRequestSays) {
  request_.set_batch(2);
  request_.set_riders(4);
  request_.set_known_timestep(true);
  request_.set_profile("resident");
  request_.set_vram_limit_gib(0.5);
  ASSERT_THAT(Plan(), IsServed());
  EXPECT_EQ(call_.model, "tiny");
  EXPECT_EQ(call_.shape, (ForwardShape{32, 16, {3, 3}}));
  EXPECT_EQ(call_.profile.name, "resident");
  EXPECT_EQ(call_.profile.vram_limit_bytes, int64_t{1} << 29);
  EXPECT_EQ(call_.riders, 4);
  EXPECT_TRUE(call_.known_timestep);
  EXPECT_EQ(call_.others.size(), catalogue_.profiles.size());
}

TEST_F(PlanTest, TakesAnInlineConfigAndTheDefaultsOfForward) {
  request_.mutable_vram_config()->set_computation_dtype("torch.float32");
  ASSERT_THAT(Plan(), IsServed());
  EXPECT_EQ(call_.profile.name, "");
  EXPECT_EQ(call_.profile.computation.dtype, DType::kFloat32);
  EXPECT_EQ(call_.shape.text_tokens.size(), 1u);
  EXPECT_EQ(call_.riders, 1);
  EXPECT_FALSE(call_.known_timestep);
  request_.clear_vram_config();
  ASSERT_THAT(Plan(), IsServed());
  EXPECT_EQ(call_.profile.name, "disk");
}

TEST_F(PlanTest, TellsPeaksBytesTimesAndOffers) {
  plan_->activation_bytes = 7;
  plan_->window_bytes = 8;
  plan_->first.disk_read_bytes = 100;
  plan_->first.device_copy_bytes = 90;
  plan_->first.most_riders = 2;
  plan_->first.time = absl::Milliseconds(1500);
  plan_->first.computing = absl::Seconds(1);
  plan_->first.device.weights_bytes = 20;
  plan_->first.device.peak_bytes = 30;
  plan_->first.host.staging_bytes = 40;
  plan_->paces.transfers.checkpoint = 1e9;
  plan_->paces.transfers.fresh = 2e9;
  plan_->paces.computed = ForwardShape{64, 48, {3}};
  plan_->offers.push_back({.profile = "resident", .equal_values = false, .repeated = {.disk_read_bytes = 5}});
  plan_->offers.push_back({.shape = ForwardShape{16, 16, {3}}});
  ASSERT_THAT(Plan(), IsServed());
  EXPECT_EQ(told_.refusal(), "");
  EXPECT_EQ(told_.activation_bytes(), 7);
  EXPECT_EQ(told_.window_bytes(), 8);
  const v1::PlannedPass& first = told_.first_pass();
  EXPECT_EQ(first.disk_read_bytes(), 100);
  EXPECT_EQ(first.device_copy_bytes(), 90);
  EXPECT_EQ(first.riders(), 2);
  EXPECT_EQ(TimeUtil::DurationToMilliseconds(first.time()), 1500);
  EXPECT_EQ(TimeUtil::DurationToMilliseconds(first.compute()), 1000);
  ASSERT_EQ(first.memories_size(), 2);
  EXPECT_EQ(first.memories(0).tier(), v1::TIER_DEVICE);
  EXPECT_EQ(first.memories(0).device(), "cpu");
  EXPECT_EQ(first.memories(0).weights_bytes(), 20);
  EXPECT_EQ(first.memories(0).peak_bytes(), 30);
  EXPECT_EQ(first.memories(1).tier(), v1::TIER_HOST);
  EXPECT_EQ(first.memories(1).staging_bytes(), 40);
  EXPECT_EQ(told_.pace().disk_bytes_per_second(), 1e9);
  EXPECT_FALSE(told_.pace().has_copy_bytes_per_second());
  EXPECT_EQ(told_.pace().fresh_bytes_per_second(), 2e9);
  EXPECT_EQ(told_.pace().width(), 48);
  ASSERT_EQ(told_.offers_size(), 2);
  EXPECT_EQ(told_.offers(0).profile(), "resident");
  EXPECT_FALSE(told_.offers(0).equal_values());
  EXPECT_EQ(told_.offers(0).repeated_pass().disk_read_bytes(), 5);
  EXPECT_EQ(told_.offers(1).height(), 16);
}

TEST_F(PlanTest, WhatWasNotMeasuredIsAbsent) {
  ASSERT_THAT(Plan(), IsServed());
  EXPECT_TRUE(told_.has_repeated_pass());
  EXPECT_FALSE(told_.repeated_pass().has_time());
  EXPECT_FALSE(told_.repeated_pass().has_compute());
  EXPECT_FALSE(told_.pace().has_disk_bytes_per_second());
  EXPECT_FALSE(told_.pace().has_fresh_bytes_per_second());
  EXPECT_FALSE(told_.pace().has_height());
}

TEST_F(PlanTest, ARefusedRequestHasAPlanThatSaysSo) {
  plan_->refusal = absl::FailedPreconditionError("it takes too much");
  ASSERT_THAT(Plan(), IsServed());
  EXPECT_EQ(told_.refusal(), "it takes too much");
  EXPECT_FALSE(told_.has_first_pass());
  EXPECT_FALSE(told_.has_repeated_pass());
}

TEST_F(PlanTest, RefusesWhatForwardRefuses) {
  const auto refuses = [this](absl::string_view part, StatusCode code = StatusCode::INVALID_ARGUMENT) {
    EXPECT_THAT(Plan(), Refused(code, part));
  };
  request_.set_height(31);
  refuses("height: 31, expected a multiple of 16 from 16 to 64");
  request_.set_height(32);
  request_.set_batch(5);
  refuses("batch: 5, expected 1 to 4");
  request_.set_batch(-1);
  refuses("batch: -1");
  request_.set_batch(1);
  request_.set_prompt_tokens(0);
  refuses("prompt_tokens: 0, expected 1 to 1024");
  request_.set_prompt_tokens(3);
  request_.set_riders(65);
  refuses("riders: 65, expected 1 to 64");
  request_.set_riders(1);
  request_.set_profile("none");
  refuses("profile: \"none\"", StatusCode::NOT_FOUND);
  request_.set_model("missing");
  refuses("model: \"missing\"", StatusCode::NOT_FOUND);
}

TEST_F(PlanTest, TheEnginesErrorIsTold) {
  plan_ = absl::InternalError("no memory");
  EXPECT_THAT(Plan(), Refused(StatusCode::INTERNAL, ""));
}

TEST_F(PlanTest, OneIsMadeAtATime) {
  absl::Notification begun, goes_on;
  engine_.SetPlanner([&](const PlanCall&) {
    begun.Notify();
    goes_on.WaitForNotification();
    return absl::StatusOr<ForwardPlan>(ForwardPlan());
  });
  grpc::ClientContext context;
  v1::PlanResponse response;
  absl::Notification done;
  models_->async()->Plan(&context, &request_, &response, [&](const grpc::Status& status) {
    EXPECT_THAT(status, IsServed());
    done.Notify();
  });
  begun.WaitForNotification();
  EXPECT_THAT(Plan(), Refused(StatusCode::RESOURCE_EXHAUSTED, "another plan is being made"));
  EXPECT_EQ(pushback_ms_, "1000");
  goes_on.Notify();
  done.WaitForNotification();
}

}  // namespace
}  // namespace ditserve
