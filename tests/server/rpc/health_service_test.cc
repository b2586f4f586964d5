#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/server/server_fixture.h"

namespace ditserve {
namespace {

using grpc::StatusCode;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

constexpr const char* kFollowReadiness[] = {"", "readiness", "ditserve.v1.TransformerService",
                                            "ditserve.v1.ModelService", "ditserve.v1.ResidencyService"};

HealthCheckRequest For(const std::string& service) {
  HealthCheckRequest request;
  request.set_service(service);
  return request;
}

class HealthServiceTest : public ServerTest {
 protected:
  HealthCheckResponse::ServingStatus Check(const std::string& service) {
    grpc::ClientContext context;
    HealthCheckResponse response;
    EXPECT_THAT(health_->Check(&context, For(service), &response), IsServed());
    return response.status();
  }

  const std::unique_ptr<grpc::health::v1::Health::Stub> health_ = grpc::health::v1::Health::NewStub(channel_);
  grpc::ClientContext context_;
};

TEST_F(HealthServiceTest, FollowsReadinessButForLiveness) {
  for (bool ready : {true, false, true}) {
    server_->SetReady(ready);
    for (const char* service : kFollowReadiness) {
      EXPECT_EQ(Check(service), ready ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING) << service;
    }
    EXPECT_EQ(Check("liveness"), HealthCheckResponse::SERVING);
  }
}

TEST_F(HealthServiceTest, ALostCheckpointIsNeitherReadyNorAlive) {
  PendingForward failing(*transformer_, TinyRequest());
  engine_.WaitForCall()->Answer(absl::UnavailableError("the disk is busy"));
  EXPECT_FALSE(failing.Wait().ok());
  EXPECT_EQ(Check("readiness"), HealthCheckResponse::SERVING);
  PendingForward losing(*transformer_, TinyRequest());
  engine_.WaitForCall(1)->Answer(absl::DataLossError("x.safetensors: the file was rewritten since it was opened"));
  EXPECT_FALSE(losing.Wait().ok());
  EXPECT_EQ(Check("readiness"), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(Check("liveness"), HealthCheckResponse::NOT_SERVING);
  server_->SetReady(true);
  EXPECT_EQ(Check("readiness"), HealthCheckResponse::NOT_SERVING);
}

TEST_F(HealthServiceTest, IsNotReadyUntilItIsSaidToBe) {
  GrpcServerOptions options;
  options.address = "127.0.0.1:0";
  const auto server = GrpcServer::Start(options, &engine_, &catalogue_);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto stub =
      grpc::health::v1::Health::NewStub(grpc::CreateChannel((*server)->address(), grpc::InsecureChannelCredentials()));
  HealthCheckResponse response;
  ASSERT_THAT(stub->Check(&context_, For("readiness"), &response), IsServed());
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
}

TEST_F(HealthServiceTest, DoesNotFindAnUnknownService) {
  HealthCheckResponse response;
  EXPECT_THAT(health_->Check(&context_, For("nobody"), &response), Refused(StatusCode::NOT_FOUND, "service"));
}

TEST_F(HealthServiceTest, TellsAWatcherEachChange) {
  const auto watch = health_->Watch(&context_, For("readiness"));
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  server_->SetReady(false);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  server_->SetReady(true);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
}

TEST_F(HealthServiceTest, TellsAWatcherThatAServiceIsUnknown) {
  const auto watch = health_->Watch(&context_, For("nobody"));
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);
}

TEST_F(HealthServiceTest, LetsAWatcherGo) {
  const auto watch = health_->Watch(&context_, For(""));
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  context_.TryCancel();
  EXPECT_THAT(watch->Finish(), Refused(StatusCode::CANCELLED, ""));
  server_->SetReady(false);
  EXPECT_EQ(Check(""), HealthCheckResponse::NOT_SERVING);
}

TEST_F(HealthServiceTest, EndsWatchesAtShutdownWithTheLastStatus) {
  const auto watch = health_->Watch(&context_, For(""));
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  server_->Shutdown(absl::Hours(1));
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_THAT(watch->Finish(), Refused(StatusCode::UNAVAILABLE, "the server is stopping"));
}

}  // namespace
}  // namespace ditserve
