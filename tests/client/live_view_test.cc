#include "client/ditctl/live_view.h"

#include <unistd.h>

#include "tests/client/fake_server.h"
#include "tests/testing/status_matchers.h"

namespace ditserve::ditctl {
namespace {

using ::testing::HasSubstr;

v1::WatchResidencyResponse Update(int64_t seconds, int64_t read_bytes) {
  v1::WatchResidencyResponse update;
  update.mutable_time()->set_seconds(seconds);
  v1::Residency& residency = *update.mutable_residency();
  v1::MemoryUse& memory = *residency.add_memories();
  memory.set_tier(v1::TIER_DEVICE);
  memory.set_device("cpu");
  memory.set_budget_bytes(1000);
  memory.set_weights_bytes(500);
  memory.set_activations_bytes(1);
  memory.set_runtime_bytes(50);
  v1::TransferTotal& transfer = *residency.add_transfers();
  transfer.set_from(v1::TIER_DISK);
  transfer.set_to(v1::TIER_HOST);
  transfer.set_bytes(read_bytes);
  v1::Rider& rider = *residency.add_riders();
  rider.set_model("qwen");
  rider.set_profile("disk");
  rider.set_modules_done(5);
  rider.set_modules_total(10);
  return update;
}

TEST(LiveViewTest, ShowsUseAsABarAndNothingAsNothing) {
  LiveView view;
  EXPECT_THAT(
      view.Show(Update(1, 0)),
      HasSubstr("[WWWWWWWWWWWWWWWWWWWWarr.................] 551 B of 1000 B (W 500 B, s 0 B, a 1 B, m 0 B, r 50 B)"));
}

TEST(LiveViewTest, ShowsRidersWhereTheyAre) {
  LiveView view;
  v1::WatchResidencyResponse update = Update(1, 0);
  EXPECT_THAT(view.Show(update), HasSubstr("[####################....................]    5/10  qwen, disk, stall"));
  update.mutable_residency()->mutable_riders(0)->set_awaits_sweep(true);
  update.mutable_residency()->mutable_riders(0)->set_priority(v1::PRIORITY_BATCH);
  EXPECT_THAT(view.Show(update), HasSubstr("qwen, disk, batch, waits for the next sweep"));
}

TEST(LiveViewTest, RatesAreDifferencesOverTheServersTime) {
  LiveView view;
  EXPECT_THAT(view.Show(Update(1, 1 << 20)), HasSubstr("disk -> host  0 B/s  (1.0 MiB in all)"));
  EXPECT_THAT(view.Show(Update(3, 5 << 20)), HasSubstr("disk -> host  2.0 MiB/s  (5.0 MiB in all)"));
}

TEST(FitTest, CutsWhatATerminalWouldScrollOrWrap) {
  EXPECT_EQ(Fit("abc\nd\nef\n", 2, 2), "ab\nd");
  EXPECT_EQ(Fit("abc\nd\n", 3, 3), "abc\nd\n");
  EXPECT_EQ(Fit("abc\nd\n", 0, 0), "abc\nd\n") << "a terminal that tells no size";
}

TEST_F(DitctlTest, TopEndsAfterAsManyUpdatesAsItIsTold) {
  server.update = Update(1, 0);
  EXPECT_EQ(Call({"top", "--count", "2", "--interval-seconds", "0.25"}), kOk);
  EXPECT_EQ(server.watch_request.interval().nanos(), 250'000'000);
  EXPECT_THAT(out.str(), HasSubstr("device cpu"));
}

TEST_F(DitctlTest, TopEndsWhenQIsPressed) {
  server.update = Update(1, 0);
  int keys[2];
  ASSERT_EQ(pipe(keys), 0);
  ASSERT_EQ(write(keys[1], "xq", 2), 2);
  EXPECT_EQ(ditctl::Run({"top"}, {server.address, server.address, out, err, false, false, interrupted, keys[0]}), kOk);
  close(keys[0]);
  close(keys[1]);
}

TEST_F(DitctlTest, TopEndsWithTheServersError) {
  server.status = grpc::Status(grpc::INVALID_ARGUMENT, "interval: 1ms, expected 0.1 to 60 seconds");
  EXPECT_EQ(Call({"top"}), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("INVALID_ARGUMENT: interval: 1ms"));
}

TEST_F(DitctlTest, TopPrintsJsonWhereAsked) {
  server.update = Update(1, 0);
  EXPECT_EQ(Call({"top", "--count", "1", "--json"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("\"device\": \"cpu\""));
}

TEST_F(DitctlTest, TopRefusesACountOrAnIntervalThatCannotBe) {
  EXPECT_EQ(Call({"top", "--count", "-1"}), kUsage);
  EXPECT_EQ(err.str(), "ditctl: --count: expected 0 or more, found -1\n");
  EXPECT_EQ(Call({"top", "--interval-seconds", "61"}), kUsage);
  EXPECT_EQ(err.str(), "ditctl: --interval-seconds: expected 0.1 to 60, found 61\n");
}

TEST_F(DitctlTest, ForwardSendsPriorityAndJoin) {
  EXPECT_EQ(Forward({"--priority", "batch", "--join", "wait"}), kOk);
  EXPECT_EQ(server.request.priority(), v1::PRIORITY_BATCH);
  EXPECT_EQ(server.request.join(), v1::JOIN_WAIT);
  EXPECT_EQ(Forward({"--join", "never"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("--join: expected auto, immediate or wait, found 'never'"));
}

}  // namespace
}  // namespace ditserve::ditctl
