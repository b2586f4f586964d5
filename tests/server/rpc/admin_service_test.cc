#include "server/rpc/admin_service.h"

#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <limits>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/server/server_fixture.h"

namespace ditserve {
namespace {

constexpr char kToken[] = "0123456789abcdef";

// Knows one token, which lacks the scope if that is told.
class OneToken final : public AccessControl {
 public:
  absl::StatusOr<Caller> Check(absl::string_view token, Scope scope) const override {
    if (token != kToken) return absl::UnauthenticatedError("unknown");
    if (scope != Scope::kAdmin || lacks_scope) return absl::PermissionDeniedError("lacks it");
    return Caller{"one"};
  }
  bool lacks_scope = false;
};

class AdminServiceTest : public ServerTest {
 protected:
  AdminServiceTest() {
    ResidencySnapshot snapshot;
    snapshot.devices = {{"cpu"}};
    snapshot.devices[0].memory.usage.budget_bytes = 100;
    snapshot.devices[0].memory.usage.wanted_bytes = 90;
    engine_.SetResidency(snapshot);
  }

  grpc::Status SetBudget(const v1::SetBudgetRequest& request, const std::string& authorization = "") {
    grpc::ClientContext context;
    if (!authorization.empty()) context.AddMetadata("authorization", authorization);
    return v1::AdminService::NewStub(admin_channel_)->SetBudget(&context, request, &response_);
  }

  static v1::SetBudgetRequest Bytes(v1::Tier tier, int64_t bytes, const std::string& device = "") {
    v1::SetBudgetRequest request;
    request.set_tier(tier);
    request.set_device(device);
    request.set_bytes(bytes);
    return request;
  }

  static v1::SetBudgetRequest Share(v1::Tier tier, double share) {
    v1::SetBudgetRequest request;
    request.set_tier(tier);
    request.set_share(share);
    return request;
  }

  v1::SetBudgetResponse response_;
};

TEST_F(AdminServiceTest, SetsABudgetAndAnswersWithWhatIsInForce) {
  for (const char* device : {"", "cpu"}) {
    ASSERT_THAT(SetBudget(Bytes(v1::TIER_DEVICE, 77, device)), IsServed());
    EXPECT_EQ(response_.memory().wanted_budget_bytes(), 77);
    EXPECT_EQ(response_.memory().budget_bytes(), 100);
  }
}

TEST_F(AdminServiceTest, TheLogTellsWhoSetWhichBudgetAndWhatItWas) {
  std::ostringstream log;
  const auto outer = spdlog::default_logger();
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  EXPECT_THAT(SetBudget(Bytes(v1::TIER_DEVICE, 77)), IsServed());
  OneToken access;
  Serve(&access);
  EXPECT_THAT(SetBudget(Bytes(v1::TIER_HOST, 500), "Bearer 0123456789abcdef"), IsServed());
  EXPECT_THAT(SetBudget(Bytes(v1::TIER_HOST, -1), "Bearer 0123456789abcdef"),
              Refused(grpc::StatusCode::INVALID_ARGUMENT, "bytes"));
  server_.reset();
  spdlog::set_default_logger(outer);
  EXPECT_THAT(log.str(), ::testing::HasSubstr("SetBudget: the budget of cpu was 90 bytes, and is 77\n"));
  EXPECT_THAT(log.str(), ::testing::HasSubstr("SetBudget by one: the budget of host memory was 0 bytes, and is 500\n"));
  EXPECT_THAT(log.str(), ::testing::Not(::testing::HasSubstr("is -1")));
}

TEST_F(AdminServiceTest, OfSeveralDevicesOneIsNamed) {
  ResidencySnapshot snapshot;
  snapshot.devices = {{"cuda:0"}, {"cuda:1"}};
  engine_.SetResidency(snapshot);
  engine_.SetMemoryBytes(DeviceMemory(1), 1000);
  ASSERT_THAT(SetBudget(Bytes(v1::TIER_DEVICE, 77, "cuda:0")), IsServed());
  v1::SetBudgetRequest half = Share(v1::TIER_DEVICE, 0.5);
  half.set_device("cuda:1");
  ASSERT_THAT(SetBudget(half), IsServed());
  EXPECT_EQ(response_.memory().device(), "cuda:1");
  EXPECT_EQ(response_.memory().wanted_budget_bytes(), 500);
  EXPECT_EQ(engine_.Residency().devices[0].memory.usage.wanted_bytes, 77);
  EXPECT_THAT(SetBudget(Bytes(v1::TIER_DEVICE, 1)),
              Refused(grpc::StatusCode::INVALID_ARGUMENT, "device: not given, expected \"cuda:0\", \"cuda:1\""));
  EXPECT_THAT(SetBudget(Bytes(v1::TIER_DEVICE, 1, "cuda:2")),
              Refused(grpc::StatusCode::NOT_FOUND, "device: \"cuda:2\", expected \"cuda:0\", \"cuda:1\""));
}

TEST_F(AdminServiceTest, SetsAShareOfTheMemoryRoundedDown) {
  engine_.SetMemoryBytes(Memory::kHost, 999);
  for (const auto& [share, bytes] : {std::pair(0.6, 599), std::pair(1.0, 999)}) {
    ASSERT_THAT(SetBudget(Share(v1::TIER_HOST, share)), IsServed());
    EXPECT_EQ(response_.memory().wanted_budget_bytes(), bytes);
  }
}

TEST_F(AdminServiceTest, RefusesSharesOutOfBounds) {
  for (const double share :
       {0.0, -0.5, 1.01, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    EXPECT_THAT(
        SetBudget(Share(v1::TIER_DEVICE, share)),
        Refused(grpc::StatusCode::INVALID_ARGUMENT, absl::StrCat("share: ", share, ", expected above 0 and up to 1")));
  }
  EXPECT_EQ(engine_.Residency().devices[0].memory.usage.wanted_bytes, 90);
}

TEST_F(AdminServiceTest, RefusesBytesOutOfBounds) {
  for (const int64_t bytes : {int64_t{-1}, (int64_t{1} << 50) + 1, std::numeric_limits<int64_t>::max()}) {
    EXPECT_THAT(SetBudget(Bytes(v1::TIER_HOST, bytes)),
                Refused(grpc::StatusCode::INVALID_ARGUMENT, absl::StrCat("bytes: ", bytes, ", expected 0 to 2^50")));
  }
  EXPECT_THAT(SetBudget(Bytes(v1::TIER_HOST, int64_t{1} << 50)), IsServed());
}

TEST_F(AdminServiceTest, RefusesMemoriesThatAreNotThere) {
  EXPECT_THAT(SetBudget(Bytes(v1::TIER_DISK, 1)),
              Refused(grpc::StatusCode::INVALID_ARGUMENT, "tier: 1, expected TIER_DEVICE or TIER_HOST"));
  EXPECT_THAT(SetBudget(Bytes(v1::TIER_HOST, 1, "cpu")),
              Refused(grpc::StatusCode::INVALID_ARGUMENT, "device: given beside TIER_HOST, expected none"));
  EXPECT_THAT(SetBudget(Bytes(v1::TIER_DEVICE, 1, "cuda:1\n")),
              Refused(grpc::StatusCode::NOT_FOUND, "device: \"cuda:1\\n\", expected \"cpu\" or none"));
}

TEST_F(AdminServiceTest, RefusesARequestWithoutABudget) {
  v1::SetBudgetRequest request;
  request.set_tier(v1::TIER_DEVICE);
  EXPECT_THAT(SetBudget(request), Refused(grpc::StatusCode::INVALID_ARGUMENT, "budget: not given"));
}

TEST_F(AdminServiceTest, IsNotServedWhereClientsAre) {
  grpc::ClientContext context;
  EXPECT_THAT(v1::AdminService::NewStub(channel_)->SetBudget(&context, Bytes(v1::TIER_DEVICE, 77), &response_),
              Refused(grpc::StatusCode::UNIMPLEMENTED, ""));
  grpc::ClientContext other;
  v1::ForwardResponse forward;
  EXPECT_THAT(v1::TransformerService::NewStub(admin_channel_)->Forward(&other, {}, &forward),
              Refused(grpc::StatusCode::UNIMPLEMENTED, ""));
}

TEST_F(AdminServiceTest, AsksForATokenOfTheScope) {
  OneToken access;
  Serve(&access);
  const v1::SetBudgetRequest request = Bytes(v1::TIER_DEVICE, 77);
  for (const char* authorization : {"", "Bearer ", "Bearer another", "Basic 0123456789abcdef", "0123456789abcdef"}) {
    EXPECT_THAT(SetBudget(request, authorization), Refused(grpc::StatusCode::UNAUTHENTICATED, "unknown"))
        << authorization;
  }
  EXPECT_EQ(engine_.Residency().devices[0].memory.usage.wanted_bytes, 90);
  EXPECT_THAT(SetBudget(request, "Bearer 0123456789abcdef"), IsServed());
  EXPECT_THAT(SetBudget(request, "bearer 0123456789abcdef"), IsServed());
  EXPECT_EQ(engine_.Residency().devices[0].memory.usage.wanted_bytes, 77);
  access.lacks_scope = true;
  EXPECT_THAT(SetBudget(request, "Bearer 0123456789abcdef"), Refused(grpc::StatusCode::PERMISSION_DENIED, "lacks it"));
  server_.reset();
}

}  // namespace
}  // namespace ditserve
