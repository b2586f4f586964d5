#include "client/ditctl/client.h"

#include "tests/client/fake_server.h"
#include "tests/testing/status_matchers.h"

namespace ditserve::ditctl {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;

TEST_F(DitctlTest, SaysWhereNoServerListens) {
  const std::string address = "unix:" + (folder / "none");
  EXPECT_EQ(Call({"models", "--address", address}), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("ditctl: UNAVAILABLE: "));
  EXPECT_THAT(err.str(), EndsWith("\n  is the server running and ready at " + address + "? see `ditctl health`\n"));
}

TEST_F(DitctlTest, WaitsUntilTheServerIsReady) {
  int asked = 0;
  server.serving = false;
  server.during_check = [&] { server.serving = ++asked == 2; };
  EXPECT_EQ(Forward({"--wait-seconds", "600"}), kOk);
  EXPECT_EQ(asked, 2);
  EXPECT_EQ(server.health_service, "readiness");
}

TEST_F(DitctlTest, WaitsForAServerOnlyAsLongAsItIsTold) {
  server.serving = false;
  EXPECT_EQ(Forward({"--wait-seconds", "0.05"}), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("was not ready within 50ms: "));
  EXPECT_FALSE(server.request.has_latents());
}

TEST_F(DitctlTest, DoesNotWaitForWhatTellsNoReadiness) {
  server.health_status = grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "");
  EXPECT_EQ(Forward({"--wait-seconds", "600"}), kFailed);
  EXPECT_EQ(err.str(),
            "ditctl: what listens at " + server.address + " is no ditserve of this version, or its other port\n");
}

TEST_F(DitctlTest, AnInterruptEndsTheWait) {
  server.serving = false;
  server.during_check = [&] { interrupted = true; };
  EXPECT_EQ(Forward({"--wait-seconds", "600"}), kInterrupted);
  EXPECT_EQ(err.str(), "ditctl: interrupted\n");
}

}  // namespace
}  // namespace ditserve::ditctl
