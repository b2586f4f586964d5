// Bytes that are moved, against what one rider moves, and against the least that any policy could.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "tests/simulation/offline_optimum.h"
#include "tests/simulation/run.h"

namespace ditserve::simulation {
namespace {

constexpr int64_t kPage = 4096;

// One device, one set of weights, and nobody who waits for too long.
Scenario MakeWorld(std::vector<int64_t> modules, int64_t budget_bytes) {
  Scenario s;
  s.options.max_riders = 32;
  s.options.ageing = absl::Milliseconds(100);
  s.devices.push_back({});
  s.fixed_bytes = {0, 0};
  s.budget_bytes = {0, budget_bytes};
  s.parents = {-1};
  s.transfer = 60;
  s.operation = 10;
  s.weights.push_back(std::move(modules));
  return s;
}

// `keeps`: its profile lets the modules stay on the device; one that does not computes with the same copies.
void AddRider(Scenario& s, int64_t joins_at, bool keeps = true) {
  Scenario::Client client;
  client.request.weights = 0;
  for (const int64_t bytes : s.weights[0]) {
    Route route;
    if (keeps) {
      route.stops = {{Tier::kDevice, 0}};
      route.stop_bytes = {bytes};
      route.limited = 0;
    }
    route.compute_bytes = bytes;
    route.compute = 0;
    client.request.routes.push_back(std::move(route));
  }
  client.joins_at = joins_at;
  client.operation = 10;
  s.clients.push_back(std::move(client));
}

int64_t BytesMoved(const Scenario& s, uint64_t seed) {
  Tally tally;
  const absl::Status status = RunScenario(s, seed, tally);
  EXPECT_TRUE(status.ok()) << "seed " << seed << ": " << status.message();
  return tally.moved_bytes;
}

// Riders of one profile that begin together on a model of which half can stay.
int64_t BytesMovedBy(int riders, uint64_t seed) {
  std::vector<int64_t> modules;
  int64_t all = 0;
  for (int i = 0; i < 20; ++i) modules.push_back((1 + (i * 7 + static_cast<int>(seed)) % 4) * kPage);
  for (const int64_t bytes : modules) all += bytes;
  Scenario s = MakeWorld(std::move(modules), all / 2 + 4 * kPage);
  for (int i = 0; i < riders; ++i) AddRider(s, /*joins_at=*/0);
  return BytesMoved(s, seed);
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

TEST(ThriftTest, TheOptimumIsWhatIsFoundByHand) {
  EXPECT_EQ(LeastBytesMoved({1, 1, 1}, 3, 3, 3), 3);
  EXPECT_EQ(LeastBytesMoved({1, 1, 1}, 3, 2, 0), 9);
  // The first stays, then the last: only the one in between comes again.
  EXPECT_EQ(LeastBytesMoved({1, 1, 1}, 2, 2, 2), 4);
  // One stays, and the other two come each time.
  EXPECT_EQ(LeastBytesMoved({1, 1, 1}, 2, 2, 1), 5);
  // The wide one stays for its last use, then the narrow ones do.
  EXPECT_EQ(LeastBytesMoved({5, 1, 1}, 3, 6, 6), 7 + 2 + 1);
  // Beside the wide one there is no room.
  EXPECT_EQ(LeastBytesMoved({5, 1, 1}, 3, 5, 5), 7 + 7 + 7);
}

// Laps of a few uneven modules, and room for a part of them and the widest beside.
struct Laps {
  Laps(int quarters, uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto below = [&random](uint64_t n) { return static_cast<int64_t>(random() % n); };
    for (int64_t i = 4 + below(6); i > 0; --i) modules.push_back((1 + below(8)) * kPage);
    laps = 2 + static_cast<int>(below(3));
    int64_t all = 0;
    for (const int64_t bytes : modules) all += bytes;
    widest = *std::max_element(modules.begin(), modules.end());
    room = all * quarters / 4 / kPage * kPage + widest;
    fits = room >= all;
  }

  std::vector<int64_t> modules;
  int laps = 0;
  int64_t room = 0, widest = 0;
  bool fits = false;
};

// What the policy moves, each lap a rider, or two of different profiles, that joins once those before it have left.
int64_t BytesMovedIn(const Laps& about, int profiles, uint64_t seed) {
  constexpr int64_t kApart = 100'000;  // Longer than any lap, and no time for idle copies to go.
  Scenario s = MakeWorld(about.modules, about.room);
  for (int lap = 0; lap < about.laps; ++lap) {
    for (int i = 0; i < profiles; ++i) AddRider(s, lap * kApart, /*keeps=*/i == 0);
  }
  return BytesMoved(s, seed);
}

// As Room::Plan: of the room, what is left to those that stream, where not all can stay.
int64_t StreamingShare(const Laps& about) {
  return about.fits ? 0 : std::clamp(about.room / 4, about.widest, Sweeps::kAheadModules * about.widest);
}

struct Ratio {
  double sum = 0, worst = 0;
  int cases = 0;

  void Add(int64_t moved, int64_t least) {
    const double ratio = static_cast<double>(moved) / static_cast<double>(least);
    sum += ratio;
    worst = std::max(worst, ratio);
    ++cases;
  }
  double mean() const { return sum / cases; }
};

class OptimumTest : public testing::TestWithParam<int> {
 protected:
  // Over the optimum in the same room, and over that which has no more to keep than the policy.
  void Compare(int profiles) {
    for (uint64_t seed = 1; seed <= 300; ++seed) {
      const Laps about(/*quarters=*/GetParam(), seed);
      const int64_t moved = BytesMovedIn(about, profiles, seed);
      const int64_t least = LeastBytesMoved(about.modules, about.laps, about.room, about.room);
      ASSERT_GE(moved, least) << "seed " << seed;
      over_all_.Add(moved, least);
      over_kept_.Add(moved, LeastBytesMoved(about.modules, about.laps, about.room, about.room - StreamingShare(about)));
    }
    RecordProperty("mean", std::to_string(over_all_.mean()));
    RecordProperty("worst", std::to_string(over_all_.worst));
    RecordProperty("mean_beside_streaming", std::to_string(over_kept_.mean()));
    RecordProperty("worst_beside_streaming", std::to_string(over_kept_.worst));
  }

  Ratio over_all_, over_kept_;
};

TEST_P(OptimumTest, OneRiderMovesLittleMoreThanAnyPolicyMustBesideTheRoomToStreamIn) {
  Compare(/*profiles=*/1);
  EXPECT_LE(over_all_.mean(), 1.30);
  EXPECT_LE(over_all_.worst, 2.60);
  EXPECT_LE(over_kept_.mean(), 1.04);
  EXPECT_LE(over_kept_.worst, 1.45);
}

// Two go in lockstep: their optimum is that of one.
TEST_P(OptimumTest, RidersOfTwoProfilesShareWhatTheyMove) {
  Compare(/*profiles=*/2);
  EXPECT_LE(over_all_.mean(), 1.30);
  EXPECT_LE(over_all_.worst, 2.60);
  EXPECT_LE(over_kept_.mean(), 1.04);
  EXPECT_LE(over_kept_.worst, 1.45);
}

INSTANTIATE_TEST_SUITE_P(QuartersOfTheModelThatFit, OptimumTest, testing::Values(1, 2, 3));

}  // namespace
}  // namespace ditserve::simulation
