#include "server/rpc/residency_service.h"

#include "tests/server/server_fixture.h"

namespace ditserve {
namespace {

class ResidencyServiceTest : public ServerTest {
 protected:
  ResidencyServiceTest() : stub_(v1::ResidencyService::NewStub(channel_)) {
    ResidencySnapshot snapshot;
    snapshot.time = absl::Seconds(5);
    snapshot.devices = {{"cpu", {{100, 10, 20, 30, 70, 90}, 3}, 8}};
    snapshot.riders.resize(1);
    snapshot.riders[0].priority = Priority::kBatch;
    snapshot.riders[0].waiting = true;
    snapshot.riders[0].stall = absl::Milliseconds(1500);
    snapshot.transfers = {{Tier::kDisk, Tier::kHost, 12}};
    snapshot.host.evictions = 4;
    engine_.SetResidency(snapshot);
  }

  static v1::WatchResidencyRequest Every(int nanos) {
    v1::WatchResidencyRequest request;
    request.mutable_interval()->set_nanos(nanos);
    return request;
  }

  const std::unique_ptr<v1::ResidencyService::Stub> stub_;
};

TEST_F(ResidencyServiceTest, TellsWhereEveryByteIs) {
  ResidencySnapshot snapshot;
  snapshot.devices = {{"cuda:0", {{100, 10, 20, 30, 70, 0, 40}}, 8, 6, absl::Seconds(9)}};
  snapshot.host.usage = {200, 11, 21, 0, 71};
  snapshot.models = {{"tiny", 1, 2, 3}};
  snapshot.riders = {{"tiny", "disk", 0, 4, 5}};
  engine_.SetResidency(snapshot);
  grpc::ClientContext context;
  v1::GetResidencyResponse response;
  ASSERT_THAT(stub_->GetResidency(&context, {}, &response), IsServed());
  EXPECT_EQ(
      response.residency().ShortDebugString(),
      "memories { tier: TIER_DEVICE device: \"cuda:0\" budget_bytes: 100 weights_bytes: 10 staging_bytes: 20 "
      "activations_bytes: 30 peak_bytes: 70 other_processes_bytes: 8 runtime_bytes: 40 } memories { tier: TIER_HOST "
      "budget_bytes: 200 "
      "weights_bytes: 11 staging_bytes: 21 peak_bytes: 71 } models { model: \"tiny\" device_bytes: 1 host_bytes: 2 "
      "disk_bytes: 3 } riders { model: \"tiny\" profile: \"disk\" modules_done: 4 modules_total: 5 priority: "
      "PRIORITY_INTERACTIVE stall { } device: \"cuda:0\" } requests_waiting: 6 predicted_wait { seconds: 9 }");
}

TEST_F(ResidencyServiceTest, TellsBudgetsTransfersAndRiders) {
  grpc::ClientContext context;
  v1::GetResidencyResponse response;
  ASSERT_THAT(stub_->GetResidency(&context, {}, &response), IsServed());
  const v1::Residency& residency = response.residency();
  EXPECT_EQ(residency.memories(0).wanted_budget_bytes(), 90);
  EXPECT_EQ(residency.memories(1).evictions(), 4);
  EXPECT_EQ(residency.transfers(0).ShortDebugString(), "from: TIER_DISK to: TIER_HOST bytes: 12");
  EXPECT_EQ(residency.riders(0).priority(), v1::PRIORITY_BATCH);
  EXPECT_TRUE(residency.riders(0).awaits_sweep());
  EXPECT_EQ(residency.riders(0).stall().nanos(), 500'000'000);
}

TEST_F(ResidencyServiceTest, WatchTellsAgainAndAgainUntilItIsCancelled) {
  grpc::ClientContext context;
  const auto reader = stub_->WatchResidency(&context, Every(100'000'000));
  v1::WatchResidencyResponse update;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(reader->Read(&update));
    EXPECT_EQ(update.residency().memories(0).weights_bytes(), 10);
    EXPECT_EQ(update.time().seconds(), 5);
  }
  context.TryCancel();
  while (reader->Read(&update)) {
  }
  EXPECT_THAT(reader->Finish(), Refused(grpc::StatusCode::CANCELLED, ""));
}

TEST_F(ResidencyServiceTest, WatchEndsAtOnceWhenTheServerStops) {
  grpc::ClientContext context;
  v1::WatchResidencyRequest request;
  request.mutable_interval()->set_seconds(60);
  const auto reader = stub_->WatchResidency(&context, request);
  v1::WatchResidencyResponse update;
  ASSERT_TRUE(reader->Read(&update));
  server_->Shutdown(absl::Hours(1));
  EXPECT_FALSE(reader->Read(&update));
  EXPECT_THAT(reader->Finish(), Refused(grpc::StatusCode::UNAVAILABLE, "stopping"));
}

TEST_F(ResidencyServiceTest, WatchRefusesIntervalsOutOfBounds) {
  for (const int nanos : {0, 99'999'999, -1}) {
    grpc::ClientContext context;
    const auto reader = stub_->WatchResidency(&context, Every(nanos));
    v1::WatchResidencyResponse update;
    EXPECT_FALSE(reader->Read(&update));
    EXPECT_THAT(reader->Finish(), Refused(grpc::StatusCode::INVALID_ARGUMENT, "expected 0.1 to 60 seconds"));
  }
}

}  // namespace
}  // namespace ditserve
