// The shapes that a server meets.
#include <algorithm>
#include <random>

#include "tests/simulation/scenario.h"

namespace ditserve::simulation {
namespace {

constexpr int64_t kPage = 4096;

int64_t Pages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// The stored bytes, in bfloat16, of the modules of the 20 B model: 18 in each of 60 blocks, four of them norms of a
// page, and 7 outside (models/module_tree.cc; sizes of models/config.h's defaults: width 3072, MLP 4 x, text 3584).
std::vector<int64_t> RealModules() {
  constexpr int64_t kWidth = 3072, kText = 3584, kTime = 256, kPatch = 64, kHead = 128;
  const auto linear = [](int64_t in, int64_t out) { return Pages(2 * (in + 1) * out); };
  std::vector<int64_t> modules = {linear(kPatch, kWidth), Pages(2 * kText), linear(kText, kWidth),
                                  linear(kTime, kWidth), linear(kWidth, kWidth)};
  for (int block = 0; block < 60; ++block) {
    for (int stream = 0; stream < 2; ++stream) {
      modules.push_back(linear(kWidth, 6 * kWidth));                          // img_mod, txt_mod.
      for (int i = 0; i < 2; ++i) modules.push_back(Pages(2 * kHead));        // norm_q, norm_k.
      for (int i = 0; i < 4; ++i) modules.push_back(linear(kWidth, kWidth));  // to_q, to_k, to_v, to_out.
      modules.push_back(linear(kWidth, 4 * kWidth));                          // The MLP.
      modules.push_back(linear(4 * kWidth, kWidth));
    }
  }
  modules.push_back(linear(kWidth, 2 * kWidth));
  modules.push_back(linear(kWidth, kPatch));
  return modules;
}

struct RealProfile {
  std::vector<Stop> stops;
  int compute, rest, limited;
};

// Forms: 0 as stored (bfloat16), 1 float32, 2 float8, 3 bfloat16 with the values of float8.
constexpr int kWidths[] = {2, 4, 1, 2};

std::vector<RealProfile> Profiles() {
  return {
      {{}, 0, -1, -1},                                    // Streamed from disk.
      {{{Tier::kHost, 0}}, 0, 0, -1},                     // Offloaded to host memory.
      {{{Tier::kHost, 0}, {Tier::kDevice, 0}}, 0, 0, 1},  // And kept on the device, up to a limit.
      {{{Tier::kDevice, 0}}, 0, 0, -1},                   // Resident.
      {{{Tier::kHost, 2}, {Tier::kDevice, 2}}, 3, 0, 1},  // Kept in float8.
      {{{Tier::kHost, 0}}, 1, 0, -1},                     // Computed in float32.
  };
}

}  // namespace

Scenario MakeRealScenario(uint64_t seed) {
  std::mt19937_64 random(seed * 104729 + 5);
  const auto below = [&random](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  Scenario s;
  s.options.max_riders = 32;
  s.options.ageing = absl::Milliseconds(500);
  s.options.max_loads = 1 + static_cast<int>(below(4));
  s.parents = {-1, 0, 0, 2};
  s.weights.assign(static_cast<size_t>(1 + below(2)), RealModules());
  // A tick is a microsecond: a module moves in up to 50 ms, and computes in up to 20.
  s.transfer = 50'000;
  s.operation = 20'000;
  s.freeing = 5'000;
  s.late_finish = below(2) == 0;
  const int64_t widest = *std::max_element(s.weights[0].begin(), s.weights[0].end());
  int64_t all = 0;
  for (const int64_t bytes : s.weights[0]) all += bytes;
  s.devices.push_back({below(2) == 0});
  s.fixed_bytes = {64 << 20, 0};
  // From one widest module, as it is widest, to everything.
  const int64_t room = 2 * widest + (below(3) == 0 ? 0 : below(all));
  const int64_t activations = int64_t{1} << 30;
  const int64_t riders = int64_t{1} << below(6);
  s.budget_bytes = {(64 << 20) + below(all), room + (below(2) == 0 ? riders : 1) * activations};
  const std::vector<RealProfile> profiles = Profiles();
  for (int64_t i = 0; i < riders; ++i) {
    Scenario::Client client;
    const RealProfile& profile = profiles[static_cast<size_t>(below(static_cast<int64_t>(profiles.size())))];
    client.request.weights = static_cast<WeightsId>(below(static_cast<int64_t>(s.weights.size())));
    const bool skips_widest = below(2) == 0;  // As a pass does whose modulations are kept.
    for (const int64_t stored : s.weights[0]) {
      if (skips_widest && stored == widest) {
        client.request.routes.emplace_back();
        continue;
      }
      Route route = {profile.stops,  {}, stored * kWidths[profile.compute] / 2, profile.rest, profile.limited,
                     profile.compute};
      for (const Stop& stop : profile.stops) route.stop_bytes.push_back(Pages(stored * kWidths[stop.form] / 2));
      route.compute_bytes = Pages(route.compute_bytes);
      client.request.routes.push_back(std::move(route));
    }
    if (profile.limited >= 0 && below(2) == 0) client.request.limit_bytes = below(all);
    client.request.activation_bytes = activations / (1 + below(8));
    client.request.priority = below(3) == 0 ? Priority::kBatch : Priority::kInteractive;
    client.joins_at = below(2) == 0 ? 0 : below(2'000'000);
    client.operation = 1 + below(s.operation);
    s.clients.push_back(std::move(client));
  }
  s.check_every = 257;
  if (below(2) == 0) {
    // Budgets change every 100 ms.
    s.faults_until = 1000;
    s.fault_gap = 200'000;
    s.only_budgets = true;
  }
  return s;
}

}  // namespace ditserve::simulation
