// Bytes that are moved, against what one rider moves.
#include <gtest/gtest.h>

#include <string>

#include "tests/simulation/run.h"

namespace ditserve::simulation {
namespace {

// Riders of one profile that begin together on a model of which half can stay.
int64_t BytesMovedBy(int riders, uint64_t seed) {
  constexpr int64_t kPage = 4096;
  constexpr int kModules = 20;
  Scenario s;
  s.options.max_riders = 32;
  s.options.ageing = absl::Milliseconds(100);
  s.devices.push_back({});
  s.fixed_bytes = {0, 0};
  s.parents = {-1};
  s.transfer = 60;
  s.operation = 10;
  s.weights.emplace_back();
  for (int i = 0; i < kModules; ++i) s.weights[0].push_back((1 + (i * 7 + static_cast<int>(seed)) % 4) * kPage);
  int64_t all = 0;
  for (const int64_t bytes : s.weights[0]) all += bytes;
  s.budget_bytes = {0, all / 2 + 4 * kPage};
  for (int i = 0; i < riders; ++i) {
    Scenario::Client client;
    client.request.weights = 0;
    for (const int64_t bytes : s.weights[0]) {
      client.request.routes.push_back({{{Tier::kDevice, 0}}, {bytes}, bytes, -1, 0, 0});
    }
    client.operation = 10;
    s.clients.push_back(client);
  }
  Tally tally;
  EXPECT_TRUE(RunScenario(s, seed, tally).ok());
  return tally.moved_bytes;
}

TEST(ThriftTest, RidersThatGoTogetherMoveAboutTheBytesOfOne) {
  for (const int riders : {2, 4, 8, 32}) {
    int64_t one = 0, together = 0;
    for (uint64_t seed = 1; seed <= 50; ++seed) {
      one += BytesMovedBy(1, seed);
      together += BytesMovedBy(riders, seed);
    }
    const double ratio = static_cast<double>(together) / static_cast<double>(one);
    RecordProperty("ratio_of_" + std::to_string(riders), std::to_string(ratio));
    EXPECT_LE(ratio, 1.02) << riders << " riders";
  }
}

}  // namespace
}  // namespace ditserve::simulation
