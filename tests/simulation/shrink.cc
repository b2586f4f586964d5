#include "tests/simulation/shrink.h"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "tests/simulation/world.h"

namespace ditserve::simulation {
namespace {

// Shrinking ends after so many runs.
constexpr int kMostRuns = 2000;
// What happens by chance differs once something is taken out: so many other seeds are tried.
constexpr uint64_t kSeeds = 4;
constexpr int64_t kMostSteps = 200'000;

class Shrinker {
 public:
  Shrinker(const Scenario& scenario, uint64_t seed, const absl::Status& why) : best_{scenario, seed, why} {}

  Shrunk Run() {
    bool smaller = true;
    while (smaller && runs_ < kMostRuns) {
      smaller = TakeOutClients();
      smaller |= TakeOutModules();
      smaller |= MakeNumbersSmaller();
      smaller |= MakeClientsSimpler();
    }
    return std::move(best_);
  }

 private:
  // What went wrong, without the numbers in it: those change as the scenario does.
  static std::string KindOf(const absl::Status& why) {
    std::string text(why.message());
    text.erase(std::remove_if(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; }), text.end());
    return text.substr(0, text.find(':'));
  }

  bool Try(const std::function<void(Scenario&)>& change) {
    Scenario candidate = best_.scenario;
    change(candidate);
    for (uint64_t i = 0; i < kSeeds && runs_ < kMostRuns; ++i) {
      const uint64_t seed = i == 0 ? best_.seed : i;
      ++runs_;
      World world(candidate, seed);
      const absl::Status why = world.Run(kMostSteps);
      if (why.ok() || KindOf(why) != KindOf(best_.why)) continue;
      best_ = {std::move(candidate), seed, why};
      return true;
    }
    return false;
  }

  bool TakeOutClients() {
    bool smaller = false;
    for (size_t i = best_.scenario.clients.size(); i-- > 0;) {
      if (best_.scenario.clients.size() == 1) break;
      smaller |= Try([i](Scenario& s) { s.clients.erase(s.clients.begin() + static_cast<std::ptrdiff_t>(i)); });
    }
    return smaller;
  }

  bool TakeOutModules() {
    bool smaller = false;
    for (size_t w = 0; w < best_.scenario.weights.size(); ++w) {
      for (size_t count = best_.scenario.weights[w].size() / 2; count > 0; count /= 2) {
        while (best_.scenario.weights[w].size() > count && Try([w, count](Scenario& s) { Cut(s, w, count); })) {
          smaller = true;
        }
      }
    }
    return smaller;
  }

  // The last `count` modules of the weights go.
  static void Cut(Scenario& s, size_t weights, size_t count) {
    s.weights[weights].resize(s.weights[weights].size() - count);
    for (Scenario::Client& client : s.clients) {
      if (static_cast<size_t>(client.request.weights) == weights) {
        std::vector<Route>& routes = client.request.routes;
        routes.resize(s.weights[weights].size());
        // Nobody takes nothing.
        if (std::none_of(routes.begin(), routes.end(), [](const Route& route) { return route.taken(); })) {
          routes.front() = {{}, {}, s.weights[weights].front(), -1, -1, /*compute=*/0};
        }
      }
    }
  }

  bool Halve(const std::function<int64_t&(Scenario&)>& number) {
    bool smaller = false;
    while (number(best_.scenario) > 0 && Try([&](Scenario& s) { number(s) /= 2; })) smaller = true;
    return smaller;
  }

  bool MakeNumbersSmaller() {
    bool smaller = Halve([](Scenario& s) -> int64_t& { return s.faults_until; });
    smaller |= Halve([](Scenario& s) -> int64_t& { return s.freeing; });
    smaller |= Halve([](Scenario& s) -> int64_t& { return s.renew_at; });
    if (best_.scenario.transfer > 1) smaller |= Try([](Scenario& s) { s.transfer /= 2; });
    if (best_.scenario.late_finish) smaller |= Try([](Scenario& s) { s.late_finish = false; });
    if (best_.scenario.pressed) smaller |= Try([](Scenario& s) { s.pressed = false; });
    if (best_.scenario.system_bytes > 0) smaller |= Try([](Scenario& s) { s.system_bytes = 0; });
    if (best_.scenario.options.max_loads > 1) smaller |= Try([](Scenario& s) { s.options.max_loads = 1; });
    if (best_.scenario.options.ageing > absl::ZeroDuration()) {
      smaller |= Try([](Scenario& s) { s.options.ageing = absl::Floor(s.options.ageing / 2, absl::Microseconds(1)); });
    }
    return smaller;
  }

  bool MakeClientsSimpler() {
    bool smaller = false;
    for (size_t i = 0; i < best_.scenario.clients.size(); ++i) {
      const Scenario::Client client = best_.scenario.clients[i];
      if (client.cancels_at >= 0) smaller |= Try([i](Scenario& s) { s.clients[i].cancels_at = -1; });
      if (client.laps > 1) smaller |= Try([i](Scenario& s) { --s.clients[i].laps; });
      if (client.decides) smaller |= Try([i](Scenario& s) { s.clients[i].decides = false; });
      if (client.comes_again) smaller |= Try([i](Scenario& s) { s.clients[i].comes_again = false; });
      if (client.request.limit_bytes) smaller |= Try([i](Scenario& s) { s.clients[i].request.limit_bytes.reset(); });
      smaller |= Halve([i](Scenario& s) -> int64_t& { return s.clients[i].request.activation_bytes; });
      smaller |= Halve([i](Scenario& s) -> int64_t& { return s.clients[i].request.host_bytes; });
      smaller |= Halve([i](Scenario& s) -> int64_t& { return s.clients[i].joins_at; });
      if (client.operation > 1) smaller |= Try([i](Scenario& s) { s.clients[i].operation /= 2; });
    }
    return smaller;
  }

  Shrunk best_;
  int runs_ = 0;
};

}  // namespace

Shrunk Shrink(const Scenario& scenario, uint64_t seed, const absl::Status& why) {
  return Shrinker(scenario, seed, why).Run();
}

}  // namespace ditserve::simulation
