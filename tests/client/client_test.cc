#include "client/ditctl/client.h"

#include "tests/client/fake_server.h"
#include "tests/testing/status_matchers.h"

namespace ditserve::ditctl {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;

std::string Text(grpc::StatusCode code, const std::string& message) {
  return ErrorText(grpc::Status(code, message), "here:1");
}

TEST(ErrorTextTest, AnAddressThatDoesNotAnswer) {
  EXPECT_EQ(Text(grpc::UNAVAILABLE, "failed to connect to all addresses"),
            "ditctl: UNAVAILABLE: failed to connect to all addresses\n"
            "  is the server running and ready at here:1? see `ditctl health`\n");
}

TEST(ErrorTextTest, AModelThatIsNotLoadedYet) {
  EXPECT_EQ(Text(grpc::UNAVAILABLE, "model: \"qwen\" is still loading"),
            "ditctl: UNAVAILABLE: model: \"qwen\" is still loading\n"
            "  try again once it is loaded: `ditctl forward --wait-seconds N`\n");
}

TEST(ErrorTextTest, ANameThatIsNotFound) {
  EXPECT_EQ(Text(grpc::NOT_FOUND, "profile: \"model\", expected one of \"disk\""),
            "ditctl: NOT_FOUND: profile: \"model\", expected one of \"disk\"\n  see `ditctl profiles`\n");
  EXPECT_EQ(Text(grpc::NOT_FOUND, "model: \"profile\", expected one of \"qwen\""),
            "ditctl: NOT_FOUND: model: \"profile\", expected one of \"qwen\"\n  see `ditctl models`\n");
  EXPECT_EQ(Text(grpc::NOT_FOUND, "unknown service"), "ditctl: NOT_FOUND: unknown service\n");
}

TEST(ErrorTextTest, AServerThatIsFull) {
  EXPECT_EQ(Text(grpc::RESOURCE_EXHAUSTED, "64 requests are waiting"),
            "ditctl: RESOURCE_EXHAUSTED: 64 requests are waiting\n"
            "  the server is full now: try again later, or lower what the request takes\n");
}

TEST(ErrorTextTest, AMessageThatIsTooLarge) {
  EXPECT_EQ(Text(grpc::RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)"),
            "ditctl: RESOURCE_EXHAUSTED: Received message larger than max (9 vs. 4)\n"
            "  send less at a time, or raise the server's max_receive_message_bytes\n");
}

TEST(ErrorTextTest, ARequestThatCanNeverRun) {
  EXPECT_EQ(Text(grpc::FAILED_PRECONDITION, "needs 3 GiB"),
            "ditctl: FAILED_PRECONDITION: needs 3 GiB\n"
            "  this server can never run the request as it is: see `ditctl residency` for its device and budgets\n");
}

TEST(ErrorTextTest, AFieldThatIsWrong) {
  EXPECT_EQ(Text(grpc::INVALID_ARGUMENT, "height: 17"), "ditctl: INVALID_ARGUMENT: height: 17\n");
}

TEST(ErrorTextTest, EveryOtherCodeWithAHint) {
  EXPECT_EQ(Text(grpc::DEADLINE_EXCEEDED, "late"),
            "ditctl: DEADLINE_EXCEEDED: late\n"
            "  the server at here:1 took too long; `ditctl forward` waits --deadline-seconds\n");
  EXPECT_EQ(Text(grpc::DATA_LOSS, "shard 3"),
            "ditctl: DATA_LOSS: shard 3\n"
            "  the checkpoint changed underneath the server: restore it and restart the server\n");
  EXPECT_EQ(Text(grpc::UNIMPLEMENTED, ""),
            "ditctl: UNIMPLEMENTED: \n  what listens at here:1 is no ditserve of this version\n");
  EXPECT_EQ(Text(grpc::INTERNAL, "ours"), "ditctl: INTERNAL: ours\n  a fault of the server: its log says more\n");
  EXPECT_EQ(Text(grpc::CANCELLED, "gone"), "ditctl: CANCELLED: gone\n");
}

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
  EXPECT_EQ(err.str(), "ditctl: what listens at " + server.address + " is no ditserve of this version\n");
}

TEST_F(DitctlTest, AnInterruptEndsTheWait) {
  server.serving = false;
  server.during_check = [&] { interrupted = true; };
  EXPECT_EQ(Forward({"--wait-seconds", "600"}), kInterrupted);
  EXPECT_EQ(err.str(), "ditctl: interrupted\n");
}

}  // namespace
}  // namespace ditserve::ditctl
