#include "server/observe/status_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace ditserve {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(StatusPageTest, TellsOneMoment) {
  ResidencySnapshot snapshot;
  snapshot.time = absl::Milliseconds(1500);
  snapshot.devices = {{"cpu", {{100, 10, 20, 30, 70, 90, 40, 50}, 7}, 99, 6}};
  snapshot.host = {{200, 11, 21, 0, 71, 200}, 8};
  snapshot.models = {{"tiny \"one\"", 1, 2, int64_t{40'861'031'488}}};
  snapshot.riders = {{"tiny", "disk", 0, 4, 5, Priority::kBatch, true, absl::Milliseconds(250)}};
  snapshot.transfers = {{Tier::kDisk, Tier::kHost, 12}, {Tier::kHost, Tier::kDevice, 13}};
  const nlohmann::json json = nlohmann::json::parse(StatusJson(snapshot, "1.2.3"));
  EXPECT_EQ(json["version"], "1.2.3");
  EXPECT_EQ(json["time_seconds"], 1.5);
  ASSERT_EQ(json["memories"].size(), 2u);
  EXPECT_EQ(json["memories"][0], nlohmann::json::parse(R"({"name": "device cpu", "budget_bytes": 100,
      "wanted_budget_bytes": 90, "weights_bytes": 10, "staging_bytes": 20, "activations_bytes": 30,
      "modulation_bytes": 50, "runtime_bytes": 40, "peak_bytes": 70, "evictions": 7, "other_processes_bytes": 99})"));
  EXPECT_EQ(json["memories"][1]["name"], "host");
  EXPECT_EQ(json["memories"][1]["evictions"], 8);
  EXPECT_EQ(json["models"][0]["model"], "tiny \"one\"");
  EXPECT_EQ(json["models"][0]["disk_bytes"], int64_t{40'861'031'488});
  EXPECT_EQ(json["riders"][0],
            nlohmann::json::parse(R"({"model": "tiny", "profile": "disk", "device": "cpu", "modules_done": 4,
      "modules_total": 5, "priority": "batch", "awaits_sweep": true, "stall_seconds": 0.25})"));
  EXPECT_EQ(json["requests_waiting"], 6);
  EXPECT_EQ(json["transfers"][0], nlohmann::json::parse(R"({"from": "disk", "to": "host", "bytes": 12})"));
  EXPECT_EQ(json["transfers"][1], nlohmann::json::parse(R"({"from": "host", "to": "device cpu", "bytes": 13})"));
}

TEST(StatusPageTest, AnIdleServerHasListsThatAreEmpty) {
  const nlohmann::json json = nlohmann::json::parse(StatusJson({}, ""));
  for (const char* list : {"models", "riders", "transfers"}) EXPECT_TRUE(json[list].is_array()) << list;
}

TEST(StatusPageTest, ThePageIsWholeAndLoadsNothingElse) {
  const std::string page = kStatusPage;
  EXPECT_THAT(page, ::testing::StartsWith("<!doctype html>"));
  EXPECT_THAT(page, HasSubstr("</html>"));
  EXPECT_THAT(page, Not(HasSubstr("src=")));
  EXPECT_THAT(page, Not(HasSubstr("href=")));
}

}  // namespace
}  // namespace ditserve
