// What a failure is shrunk to, and what it is printed as.
#include "tests/simulation/shrink.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <string>

#include "tests/simulation/run.h"

namespace ditserve::simulation {
namespace {

absl::Status RunOnce(const Scenario& scenario, uint64_t seed) {
  Tally tally;
  return RunScenario(scenario, seed, tally);
}

// One of several clients computes for much longer than the scenario says that any does. What the policy promises takes
// that for granted, so another one waits for longer than it may.
class ShrinkTest : public testing::Test {
 protected:
  static constexpr uint64_t kSeed = 4;

  static Scenario WithASlowClient() {
    Scenario scenario = MakeScenario(Kind::kCalm, kSeed);
    scenario.clients[1].operation = 1'000'000;
    return scenario;
  }

  const Scenario scenario_ = WithASlowClient();
  const absl::Status why_ = RunOnce(scenario_, kSeed);
  const Shrunk shrunk_ = Shrink(scenario_, kSeed, why_);
};

TEST_F(ShrinkTest, WhoIsToBlameAndWhoSuffersAreLeft) {
  ASSERT_GT(scenario_.clients.size(), 2u);
  ASSERT_EQ(shrunk_.scenario.clients.size(), 2u);
  EXPECT_EQ(std::count_if(shrunk_.scenario.clients.begin(), shrunk_.scenario.clients.end(),
                          [&](const Scenario::Client& client) { return client.operation > scenario_.operation; }),
            1);
}

TEST_F(ShrinkTest, ItFailsOfTheSame) {
  EXPECT_NE(std::string(why_.message()).find(" has a copy for "), std::string::npos) << why_.message();
  EXPECT_NE(std::string(shrunk_.why.message()).find(" has a copy for "), std::string::npos) << shrunk_.why.message();
  EXPECT_EQ(RunOnce(shrunk_.scenario, shrunk_.seed), shrunk_.why);
}

TEST_F(ShrinkTest, NobodyCanBeTakenOutWithoutItGoingWell) {
  for (size_t i = 0; i < shrunk_.scenario.clients.size(); ++i) {
    Scenario without = shrunk_.scenario;
    without.clients.erase(without.clients.begin() + static_cast<std::ptrdiff_t>(i));
    EXPECT_EQ(RunOnce(without, shrunk_.seed), absl::OkStatus()) << "without client " << i;
  }
}

TEST(DescribeTest, AScenarioIsPrintedAsWhatCanBePastedIntoATest) {
  // As it is printed below.
  Scenario s;
  s.options = {7, 1, 2, absl::Microseconds(5), absl::Microseconds(13), absl::Microseconds(1000000)};
  s.devices.push_back({true});
  s.fixed_bytes = {4096, 0};
  s.budget_bytes = {8192, 32768};
  s.weights.push_back({8192, 4096});
  s.parents = {-1, 0};
  s.transfer = 179, s.operation = 40, s.freeing = 3;
  s.late_finish = true, s.only_budgets = false, s.pressed = true;
  s.faults_until = 9, s.fault_gap = 600, s.system_bytes = 16384, s.renew_at = 0;
  s.clients.push_back({{0,
                        DeviceMemory(0),
                        {
                            {{{Tier::kHost, 0}, {Tier::kDevice, 1}}, {8192, 8192}, 8192, 0, 1, 1},
                            {{}, {}, 4096, -1, -1, 0},
                        },
                        12288,
                        4096,
                        Priority::kBatch,
                        static_cast<JoinPolicy>(1),
                        512},
                       17,
                       -1,
                       20,
                       true,
                       3,
                       true});
  EXPECT_EQ(Describe(s), R"(Scenario s;
s.options = {7, 1, 2, absl::Microseconds(5), absl::Microseconds(13), absl::Microseconds(1000000)};
s.devices.push_back({true});
s.fixed_bytes = {4096, 0};
s.budget_bytes = {8192, 32768};
s.weights.push_back({8192, 4096});
s.parents = {-1, 0};
s.transfer = 179, s.operation = 40, s.freeing = 3;
s.late_finish = true, s.only_budgets = false, s.pressed = true;
s.faults_until = 9, s.fault_gap = 600, s.system_bytes = 16384, s.renew_at = 0;
s.clients.push_back({{0, DeviceMemory(0), {
    {{{Tier::kHost, 0}, {Tier::kDevice, 1}}, {8192, 8192}, 8192, 0, 1, 1},
    {{}, {}, 4096, -1, -1, 0},
}, 12288, 4096, Priority::kBatch, static_cast<JoinPolicy>(1), 512}, 17, -1, 20, true, 3, true});
)");
}

}  // namespace
}  // namespace ditserve::simulation
