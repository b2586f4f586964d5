#include "server/observe/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>
#include <sstream>
#include <thread>

#include "absl/strings/str_split.h"
#include "tests/server/server_fixture.h"

namespace ditserve {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class MetricsTest : public ServerTest {
 protected:
  MetricsTest() {
    ResidencySnapshot snapshot;
    snapshot.devices = {
        {"cuda:0", {{100, 10, 20, 30, 70, 90, 40, 45}, 7}, 99, 6, absl::Milliseconds(2500), 61, {3, 42, 5, 4, 2}},
        {"cuda:1", {{500, 50}, 5}, 0, 0, absl::Seconds(4)}};
    snapshot.host = {{200, 11, 21, 0, 71}, 8};
    snapshot.models = {{"tiny", 1, 2, int64_t{40'861'031'488}}};
    snapshot.riders.resize(3);
    snapshot.riders[2].waiting = true;
    snapshot.transfers = {
        {Tier::kDisk, Tier::kHost, 1000}, {Tier::kHost, Tier::kDevice, 900}, {Tier::kHost, Tier::kDevice, 800, 1}};
    snapshot.riders[1].device = 1;
    snapshot.host_unpinned_bytes = 98;
    engine_.SetResidency(snapshot);
  }

  GateFigures gate_;
  const std::unique_ptr<Metrics> metrics_ = Metrics::Make(&engine_, {"disk", "resident"}, "1.2.3");
};

TEST_F(MetricsTest, TellsWhatTheEngineTellsToTheByte) {
  const std::string text = metrics_->Scrape(gate_);
  for (const char* line : {"ditserve_weights_bytes{model=\"tiny\",tier=\"device\"} 1\n",
                           "ditserve_weights_bytes{model=\"tiny\",tier=\"disk\"} 40861031488\n",
                           "ditserve_memory_bytes{memory=\"device\",device=\"cuda:0\",kind=\"weights\"} 10\n",
                           "ditserve_memory_bytes{memory=\"device\",device=\"cuda:0\",kind=\"activations\"} 30\n",
                           "ditserve_memory_bytes{memory=\"device\",device=\"cuda:0\",kind=\"modulation\"} 45\n",
                           "ditserve_memory_bytes{memory=\"device\",device=\"cuda:0\",kind=\"runtime\"} 40\n",
                           "ditserve_memory_bytes{memory=\"host\",kind=\"staging\"} 21\n",
                           "ditserve_memory_budget_bytes{memory=\"host\"} 200\n",
                           "ditserve_memory_wanted_budget_bytes{memory=\"device\",device=\"cuda:0\"} 90\n",
                           "ditserve_memory_peak_bytes{memory=\"device\",device=\"cuda:0\"} 70\n",
                           "ditserve_device_other_processes_bytes{device=\"cuda:0\"} 99\n",
                           "ditserve_host_unpinned_bytes 98\n",
                           "ditserve_transfer_bytes_total{from=\"disk\",to=\"host\"} 1000\n",
                           "ditserve_transfer_bytes_total{from=\"host\",to=\"device\",device=\"cuda:0\"} 900\n",
                           "ditserve_transfer_bytes_total{from=\"host\",to=\"device\",device=\"cuda:1\"} 800\n",
                           "ditserve_modules_computed_total{device=\"cuda:0\"} 61\n",
                           "ditserve_modules_computed_total{device=\"cuda:1\"} 0\n",
                           "ditserve_modulation_rows{device=\"cuda:0\"} 3\n",
                           "ditserve_modulation_used_bytes{device=\"cuda:0\"} 42\n",
                           "ditserve_modulation_lookups_total{device=\"cuda:0\",result=\"hit\"} 5\n",
                           "ditserve_modulation_lookups_total{device=\"cuda:0\",result=\"miss\"} 4\n",
                           "ditserve_modulation_lookups_total{device=\"cuda:1\",result=\"hit\"} 0\n",
                           "ditserve_modulation_evictions_total{device=\"cuda:0\"} 2\n",
                           "ditserve_memory_bytes{memory=\"device\",device=\"cuda:1\",kind=\"weights\"} 50\n",
                           "ditserve_memory_budget_bytes{memory=\"device\",device=\"cuda:1\"} 500\n",
                           "ditserve_evictions_total{memory=\"device\",device=\"cuda:1\"} 5\n",
                           "ditserve_device_requests{device=\"cuda:0\",state=\"riding\"} 1\n",
                           "ditserve_device_requests{device=\"cuda:0\",state=\"waiting\"} 7\n",
                           "ditserve_device_requests{device=\"cuda:1\",state=\"riding\"} 1\n",
                           "ditserve_device_requests{device=\"cuda:1\",state=\"waiting\"} 0\n",
                           "ditserve_evictions_total{memory=\"host\"} 8\n",
                           "ditserve_requests_active 3\n",
                           "ditserve_requests_waiting 7\n",
                           "ditserve_sweep_riders 2\n",
                           "ditserve_predicted_wait_seconds 2.5\n",
                           "ditserve_model_load_progress_ratio{model=\"tiny\"} 1\n",
                           "ditserve_build_info{version=\"1.2.3\"} 1\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST_F(MetricsTest, WhoWaitsAndWhoRidesAreAllRequestsAndNobodyIsBoth) {
  const auto value = [text = metrics_->Scrape(gate_)](const std::string& name) {
    std::smatch found;
    EXPECT_TRUE(std::regex_search(text, found, std::regex("\n" + name + " ([0-9]+)\n"))) << name;
    return found.empty() ? -1 : std::stoi(found[1]);
  };
  const ResidencySnapshot snapshot = engine_.Residency();  // One rider waits for the next sweep.
  const int all = static_cast<int>(snapshot.riders.size()) + static_cast<int>(snapshot.waiting());
  EXPECT_EQ(value("ditserve_requests_waiting") + value("ditserve_sweep_riders"), all);
}

TEST_F(MetricsTest, CountsCallsAndTimesThoseThatWereAnswered) {
  ForwardAccount account;
  account.total = absl::Seconds(1);  // Without what decoding and encoding take.
  account.stall = absl::Seconds(2);
  metrics_->OnEnd({.rpc = "Forward",
                   .code = absl::StatusCode::kOk,
                   .model = "tiny",
                   .profile = "disk",
                   .duration = absl::Seconds(3),
                   .account = &account});
  metrics_->OnEnd({.rpc = "ForwardStream", .code = absl::StatusCode::kDataLoss, .profile = "disk", .account = nullptr});
  const std::string text = metrics_->Scrape(gate_);
  EXPECT_THAT(text, HasSubstr("ditserve_requests_total{code=\"OK\",model=\"tiny\",rpc=\"Forward\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("ditserve_requests_total{code=\"DATA_LOSS\",model=\"\",rpc=\"ForwardStream\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("ditserve_requests_total{code=\"DATA_LOSS\",model=\"tiny\",rpc=\"Denoise\"} 0\n"))
      << "so that the first is seen to come";
  EXPECT_THAT(text, HasSubstr("ditserve_requests_total{code=\"UNAVAILABLE\",model=\"tiny\",rpc=\"Denoise\"} 0\n"));
  EXPECT_THAT(text,
              HasSubstr("ditserve_forward_duration_seconds_sum{model=\"tiny\",profile=\"disk\",rpc=\"Forward\"} 3\n"));
  EXPECT_THAT(text,
              HasSubstr("ditserve_stage_duration_seconds_sum{model=\"tiny\",rpc=\"Forward\",stage=\"stall\"} 2\n"));
  const std::string bucket =
      "ditserve_forward_duration_seconds_bucket{model=\"tiny\",profile=\"disk\",rpc=\"Forward\",";
  EXPECT_THAT(text, HasSubstr(bucket + "le=\"2.5\"} 0\n"));
  EXPECT_THAT(text, HasSubstr(bucket + "le=\"5\"} 1\n"));
}

TEST_F(MetricsTest, LoopsAreToldApartFromPassesAndTheirStepsAreCounted) {
  EXPECT_THAT(metrics_->Scrape(gate_), HasSubstr("ditserve_denoise_steps_total{model=\"tiny\"} 0\n"))
      << "so that the first are seen to come";
  ForwardAccount account;
  account.compute = absl::Seconds(400);
  EndedRequest loop = {.rpc = "Denoise",
                       .code = absl::StatusCode::kOk,
                       .model = "tiny",
                       .profile = "disk",
                       .duration = absl::Seconds(500),
                       .steps = 50,
                       .account = &account};
  metrics_->OnEnd(loop);
  loop.code = absl::StatusCode::kCancelled;
  loop.account = nullptr;
  metrics_->OnEnd(loop);
  account.compute = absl::Seconds(8);
  metrics_->OnEnd({.rpc = "Forward",
                   .code = absl::StatusCode::kOk,
                   .model = "tiny",
                   .profile = "disk",
                   .duration = absl::Seconds(10),
                   .account = &account});
  const std::string text = metrics_->Scrape(gate_);
  for (const char* line :
       {"ditserve_forward_duration_seconds_sum{model=\"tiny\",profile=\"disk\",rpc=\"Denoise\"} 500\n",
        "ditserve_forward_duration_seconds_sum{model=\"tiny\",profile=\"disk\",rpc=\"Forward\"} 10\n",
        "ditserve_stage_duration_seconds_sum{model=\"tiny\",rpc=\"Denoise\",stage=\"compute\"} 400\n",
        "ditserve_stage_duration_seconds_sum{model=\"tiny\",rpc=\"Forward\",stage=\"compute\"} 8\n",
        "ditserve_denoise_steps_total{model=\"tiny\"} 50\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

// A quantile is guessed within a bucket: it is off by no more than the factor between the bucket's ends.
TEST_F(MetricsTest, DurationsFromAMillisecondToHalfADayAreToldApart) {
  const std::regex bucket(R"re(ditserve_stage_duration_seconds_bucket\{.*stage="stall",le="([0-9.e+]+)"\} \d+)re");
  ForwardAccount account;
  metrics_->OnEnd(
      {.rpc = "Forward", .code = absl::StatusCode::kOk, .model = "tiny", .profile = "disk", .account = &account});
  std::vector<double> ends;
  for (const absl::string_view line : absl::StrSplit(metrics_->Scrape(gate_), '\n')) {
    std::smatch found;
    const std::string text(line);
    if (std::regex_match(text, found, bucket)) ends.push_back(std::stod(found[1]));
  }
  ASSERT_FALSE(ends.empty());
  EXPECT_LE(ends.front(), 0.001);
  EXPECT_GE(ends.back(), 12 * 3600);
  for (size_t i = 1; i < ends.size(); ++i) EXPECT_LE(ends[i], 2.5 * ends[i - 1]) << ends[i];
}

TEST_F(MetricsTest, OnlyConfiguredProfilesBecomeLabels) {
  const ForwardAccount account;
  metrics_->OnEnd(
      {.rpc = "Forward", .code = absl::StatusCode::kOk, .model = "tiny", .profile = "made\"up", .account = &account});
  EXPECT_THAT(metrics_->Scrape(gate_), Not(HasSubstr("made")));
  EXPECT_THAT(
      metrics_->Scrape(gate_),
      HasSubstr("ditserve_forward_duration_seconds_count{model=\"tiny\",profile=\"inline\",rpc=\"Forward\"} 1\n"));
}

// What `promtool check metrics` looks at: HELP and TYPE before samples, names by kind, no metric without samples.
TEST_F(MetricsTest, KeepsPrometheusConventions) {
  const ForwardAccount account;
  metrics_->OnEnd(
      {.rpc = "Forward", .code = absl::StatusCode::kOk, .model = "tiny", .profile = "disk", .account = &account});
  std::string family, type;
  int samples = 0;
  for (const absl::string_view line : absl::StrSplit(metrics_->Scrape(gate_), '\n', absl::SkipEmpty())) {
    const std::vector<std::string> words = absl::StrSplit(line, absl::MaxSplits(' ', 3));
    if (words[0] == "#") {
      if (words[1] == "HELP") {
        EXPECT_THAT(words[3], ::testing::EndsWith("."));
        family = words[2];
      } else {
        EXPECT_EQ(words[2], family) << "TYPE follows HELP";
        type = words[3];
        EXPECT_EQ(type == "counter", absl::EndsWith(family, "_total")) << family;
      }
      continue;
    }
    ++samples;
    EXPECT_TRUE(absl::StartsWith(line, family)) << line;
    EXPECT_TRUE(std::regex_match(std::string(line), std::regex(R"([a-z_]+(\{([a-z]+="[^"]*",?)+\})? [-+0-9.eInf]+)")))
        << line;
  }
  EXPECT_GT(samples, 30);
}

TEST_F(MetricsTest, IsScrapedWhileCallsEnd) {
  std::thread load([this] {
    const ForwardAccount account;
    for (int i = 0; i < 1000; ++i)
      metrics_->OnEnd(
          {.rpc = "Forward", .code = absl::StatusCode::kOk, .model = "tiny", .profile = "disk", .account = &account});
  });
  for (int i = 0; i < 5; ++i) EXPECT_THAT(metrics_->Scrape(gate_), HasSubstr("ditserve_requests_active 3"));
  load.join();
  EXPECT_THAT(metrics_->Scrape(gate_),
              HasSubstr("ditserve_requests_total{code=\"OK\",model=\"tiny\",rpc=\"Forward\"} 1000"));
}

TEST_F(MetricsTest, TellsWhatTheGateSeesByItsDoors) {
  gate_.doors = {{"clients", 3, 2, 1 << 20, 4, {{absl::StatusCode::kUnimplemented, 5}}}, {"health", 1}};
  gate_.answer_bytes = 1 << 21;
  gate_.certificate_ends = absl::FromUnixSeconds(1'800'000'000);
  const std::string text = metrics_->Scrape(gate_);
  for (const char* line :
       {"ditserve_gate_connections{door=\"clients\"} 3", "ditserve_gate_connections{door=\"health\"} 1",
        "ditserve_gate_calls{door=\"clients\"} 2", "ditserve_gate_message_bytes{door=\"clients\"} 1048576",
        "ditserve_gate_connections_turned_away_total{door=\"clients\"} 4",
        "ditserve_gate_refused_total{door=\"clients\",code=\"UNIMPLEMENTED\"} 5",
        "ditserve_gate_refused_total{door=\"health\",code=\"UNAUTHENTICATED\"} 0", "ditserve_answer_bytes 2097152",
        "ditserve_certificate_not_after_seconds 1800000000"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_THAT(metrics_->Scrape({}), Not(HasSubstr("certificate")));  // Without TLS there is none.
}

}  // namespace
}  // namespace ditserve
