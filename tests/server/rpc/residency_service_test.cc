#include "server/rpc/residency_service.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/server/server_fixture.h"

namespace ditserve {
namespace {

class ResidencyServiceTest : public ServerTest {
 protected:
  ResidencyServiceTest() : stub_(v1::ResidencyService::NewStub(channel_)) {
    ResidencySnapshot snapshot;
    snapshot.time = absl::Seconds(5);
    snapshot.device_name = "cpu";
    snapshot.device = {100, 10, 20, 30, 70, 90};
    snapshot.riders.resize(1);
    snapshot.riders[0].priority = Priority::kBatch;
    snapshot.riders[0].waiting = true;
    snapshot.riders[0].stall = absl::Milliseconds(1500);
    snapshot.transfers = {{Tier::kDisk, Tier::kHost, 12}};
    snapshot.evictions = {3, 4};
    snapshot.other_processes_bytes = 8;
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
  snapshot.device_name = "cuda:0";
  snapshot.device = {100, 10, 20, 30, 70};
  snapshot.host = {200, 11, 21, 0, 71};
  snapshot.models = {{"tiny", 1, 2, 3}};
  snapshot.riders = {{"tiny", "disk", 4, 5}};
  snapshot.waiting = 6;
  engine_.SetResidency(snapshot);
  grpc::ClientContext context;
  v1::GetResidencyResponse response;
  ASSERT_THAT(stub_->GetResidency(&context, {}, &response), IsServed());
  EXPECT_EQ(response.ShortDebugString(),
            "memories { memory: \"device\" budget_bytes: 100 weights_bytes: 10 staging_bytes: 20 activations_bytes: 30 "
            "peak_bytes: 70 } memories { memory: \"host\" budget_bytes: 200 weights_bytes: 11 staging_bytes: 21 "
            "peak_bytes: 71 } models { model: \"tiny\" device_bytes: 1 host_bytes: 2 disk_bytes: 3 } riders { model: "
            "\"tiny\" profile: \"disk\" modules_done: 4 modules_total: 5 priority: PRIORITY_INTERACTIVE stall { } } "
            "waiting: 6 device: \"cuda:0\"");
}

TEST_F(ResidencyServiceTest, TellsBudgetsTransfersAndRiders) {
  grpc::ClientContext context;
  v1::GetResidencyResponse response;
  ASSERT_THAT(stub_->GetResidency(&context, {}, &response), IsServed());
  EXPECT_EQ(response.memories(0).wanted_budget_bytes(), 90);
  EXPECT_EQ(response.memories(1).evictions(), 4);
  EXPECT_EQ(response.transfers(0).ShortDebugString(), "from: \"disk\" to: \"host\" bytes: 12");
  EXPECT_EQ(response.riders(0).priority(), v1::PRIORITY_BATCH);
  EXPECT_TRUE(response.riders(0).waiting());
  EXPECT_EQ(response.riders(0).stall().nanos(), 500'000'000);
  EXPECT_EQ(response.other_processes_bytes(), 8);
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

TEST_F(ResidencyServiceTest, SetsABudgetAndAnswersWithWhatIsInForce) {
  grpc::ClientContext context;
  v1::SetBudgetRequest request;
  request.set_memory("device");
  request.set_budget_bytes(77);
  v1::SetBudgetResponse response;
  ASSERT_THAT(stub_->SetBudget(&context, request, &response), IsServed());
  EXPECT_EQ(response.memory().wanted_budget_bytes(), 77);
  EXPECT_EQ(response.memory().budget_bytes(), 100);
}

TEST_F(ResidencyServiceTest, SetsAShareOfTheMemoryRoundedDown) {
  engine_.SetMemoryBytes(Memory::kHost, 999);
  for (const auto& [share, bytes] : {std::pair(0.6, 599), std::pair(1.0, 999)}) {
    grpc::ClientContext context;
    v1::SetBudgetRequest request;
    request.set_memory("host");
    request.set_share(share);
    v1::SetBudgetResponse response;
    ASSERT_THAT(stub_->SetBudget(&context, request, &response), IsServed());
    EXPECT_EQ(response.memory().wanted_budget_bytes(), bytes);
  }
}

TEST_F(ResidencyServiceTest, RefusesSharesOutOfBounds) {
  for (const double share :
       {0.0, -0.5, 1.01, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    grpc::ClientContext context;
    v1::SetBudgetRequest request;
    request.set_memory("device");
    request.set_share(share);
    v1::SetBudgetResponse response;
    EXPECT_THAT(
        stub_->SetBudget(&context, request, &response),
        Refused(grpc::StatusCode::INVALID_ARGUMENT, absl::StrCat("share: ", share, ", expected above 0 and up to 1")));
  }
  EXPECT_EQ(engine_.Residency().device.wanted_bytes, 90);
}

TEST_F(ResidencyServiceTest, RefusesBytesAndAShareTogether) {
  grpc::ClientContext context;
  v1::SetBudgetRequest request;
  request.set_memory("device");
  request.set_budget_bytes(77);
  request.set_share(0.5);
  v1::SetBudgetResponse response;
  EXPECT_THAT(stub_->SetBudget(&context, request, &response),
              Refused(grpc::StatusCode::INVALID_ARGUMENT, "share: 0.5 beside budget_bytes: 77, expected one of them"));
  EXPECT_EQ(engine_.Residency().device.wanted_bytes, 90);
}

TEST_F(ResidencyServiceTest, RefusesBudgetsNamingTheField) {
  v1::SetBudgetResponse response;
  v1::SetBudgetRequest request;
  request.set_memory("attic");
  {
    grpc::ClientContext context;
    EXPECT_THAT(stub_->SetBudget(&context, request, &response),
                Refused(grpc::StatusCode::INVALID_ARGUMENT, "memory: expected \"device\" or \"host\""));
  }
  request.set_memory("host");
  request.set_budget_bytes(-1);
  grpc::ClientContext context;
  EXPECT_THAT(stub_->SetBudget(&context, request, &response),
              Refused(grpc::StatusCode::INVALID_ARGUMENT, "budget_bytes: -1, expected 0 or more"));
}

}  // namespace
}  // namespace ditserve
