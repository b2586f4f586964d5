#include "tests/client/fake_server.h"

namespace ditserve::ditctl {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class PlanTest : public DitctlTest {
 protected:
  static void SetPass(v1::PlannedPass& pass, int64_t disk_read_bytes) {
    pass.set_disk_read_bytes(disk_read_bytes);
    v1::MemoryUse& device = *pass.add_memories();
    device.set_tier(v1::TIER_DEVICE);
    device.set_device("cpu");
    device.set_wanted_budget_bytes(4 << 20);
    device.set_weights_bytes(2 << 20);
    device.set_peak_bytes(3 << 20);
    v1::MemoryUse& host = *pass.add_memories();
    host.set_tier(v1::TIER_HOST);
    host.set_peak_bytes(1 << 20);
  }

  PlanTest() {
    server.plan.set_activation_bytes(512);
    server.plan.set_window_bytes(1024);
    SetPass(*server.plan.mutable_first_pass(), 5 << 20);
    SetPass(*server.plan.mutable_repeated_pass(), 1 << 20);
  }

  void Measured() {
    server.plan.mutable_pace()->set_height(64);
    server.plan.mutable_pace()->set_width(32);
    server.plan.mutable_pace()->set_disk_bytes_per_second(2 << 20);
    for (v1::PlannedPass* pass : {server.plan.mutable_first_pass(), server.plan.mutable_repeated_pass()}) {
      pass->mutable_time()->set_seconds(9);
      pass->mutable_compute()->set_seconds(7);
    }
  }
};

TEST_F(PlanTest, AsksForWhatTheFlagsSay) {
  EXPECT_EQ(Call({"plan", "--height", "64", "--width", "32", "--batch", "2", "--prompt-tokens", "7", "--riders", "4",
                  "--profile", "fast", "--vram-limit-gib", "0.5", "--model", "qwen"}),
            kOk);
  EXPECT_EQ(server.plan_request.model(), "qwen");
  EXPECT_EQ(server.plan_request.height(), 64);
  EXPECT_EQ(server.plan_request.width(), 32);
  EXPECT_EQ(server.plan_request.batch(), 2);
  EXPECT_EQ(server.plan_request.prompt_tokens(), 7);
  EXPECT_EQ(server.plan_request.riders(), 4);
  EXPECT_EQ(server.plan_request.profile(), "fast");
  EXPECT_EQ(server.plan_request.vram_limit_gib(), 0.5);
}

TEST_F(PlanTest, AsksForWhatForwardSendsByDefault) {
  EXPECT_EQ(Call({"plan", "--vram-config", R"({"computation_dtype": "float32"})"}), kOk);
  EXPECT_EQ(server.plan_request.height(), 1024);
  EXPECT_EQ(server.plan_request.width(), 1024);
  EXPECT_EQ(server.plan_request.batch(), 1);
  EXPECT_EQ(server.plan_request.prompt_tokens(), 5);
  EXPECT_EQ(server.plan_request.riders(), 1);
  EXPECT_EQ(server.plan_request.vram_config().computation_dtype(), "float32");
  EXPECT_FALSE(server.plan_request.has_vram_limit_gib());
}

TEST_F(PlanTest, RefusesAProfileBesideAConfig) {
  EXPECT_EQ(Call({"plan", "--profile", "a", "--vram-config", "{}"}), kUsage);
  EXPECT_EQ(err.str(), "ditctl: give either --profile or --vram-config\n");
}

TEST_F(PlanTest, SaysThatNothingWasMeasuredYet) {
  EXPECT_EQ(Call({"plan"}), kOk);
  EXPECT_EQ(out.str(),
            "takes       512 B of activations and 1.0 KiB to stream weights through, of device memory\n"
            "times       nothing was measured yet: send one such `ditctl forward`, then ask again\n"
            "\n"
            "PASS      TIME     COMPUTING  FROM DISK  TO DEVICE  DEVICE PEAK  HOST PEAK\n"
            "first     unknown  unknown    5.0 MiB    0 B        3.0 MiB      1.0 MiB\n"
            "repeated  unknown  unknown    1.0 MiB    0 B        3.0 MiB      1.0 MiB\n"
            "\n"
            "AT ITS PEAK  BUDGET   WEIGHTS  STAGING  ACTIVATIONS  PEAK\n"
            "device cpu   4.0 MiB  2.0 MiB  0 B      0 B          3.0 MiB\n"
            "host         0 B      0 B      0 B      0 B          1.0 MiB\n");
}

TEST_F(PlanTest, TellsWhichPaceTimesRestOn) {
  Measured();
  EXPECT_EQ(Call({"plan"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("times       rest on computing: measured at 32x64, disk: 2.0 MiB/s, copies: not "
                                   "measured\n"));
  EXPECT_THAT(out.str(), HasSubstr("first     9.00 s  7.00 s"));
  server.plan.mutable_pace()->set_fresh_bytes_per_second(3 << 20);
  EXPECT_EQ(Call({"plan"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("not measured, fresh memory: 3.0 MiB/s\n"));
}

TEST_F(PlanTest, TellsWhatIsCheaper) {
  Measured();
  v1::Offer& profile = *server.plan.add_offers();
  profile.set_profile("fast");
  SetPass(*profile.mutable_repeated_pass(), 0);
  v1::Offer& limit = *server.plan.add_offers();
  limit.set_without_limit(true);
  limit.set_equal_values(true);
  EXPECT_EQ(Call({"plan"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("CHEAPER, REPEATED"));
  EXPECT_THAT(out.str(),
              HasSubstr("--profile fast     unknown  unknown    0 B        0 B        3.0 MiB      1.0 MiB    "
                        "rounded otherwise\n"));
  EXPECT_THAT(out.str(), HasSubstr("without the limit"));
}

TEST_F(PlanTest, ExitsWithOneWhereTheRequestWouldBeRefused) {
  server.plan.clear_first_pass();
  server.plan.clear_repeated_pass();
  server.plan.set_refusal("it takes too much");
  v1::Offer& smaller = *server.plan.add_offers();
  smaller.set_height(64);
  smaller.set_width(32);
  smaller.set_equal_values(true);
  SetPass(*smaller.mutable_repeated_pass(), 0);
  EXPECT_EQ(Call({"plan"}), kFailed);
  EXPECT_THAT(out.str(), HasSubstr("refused     it takes too much\n"));
  EXPECT_THAT(out.str(), HasSubstr("FITS, REPEATED"));
  EXPECT_THAT(out.str(), HasSubstr("--height 64 --width 32"));
  EXPECT_THAT(out.str(), Not(HasSubstr("times")));
  EXPECT_EQ(err.str(), "");
}

TEST_F(PlanTest, PrintsJsonWhereAsked) {
  EXPECT_EQ(Call({"plan", "--json"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("\"window_bytes\": \"1024\""));
}

TEST_F(PlanTest, FailsWithTheServersError) {
  server.status = grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "riders: 99, expected 1 to 64");
  EXPECT_EQ(Call({"plan", "--riders", "99"}), kFailed);
  EXPECT_EQ(err.str(), "ditctl: INVALID_ARGUMENT: riders: 99, expected 1 to 64\n");
}

}  // namespace
}  // namespace ditserve::ditctl
