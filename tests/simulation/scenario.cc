#include "tests/simulation/scenario.h"

#include <algorithm>
#include <random>

namespace ditserve::simulation {
namespace {

constexpr int64_t kPage = 4096;

// Forms are made from one another, as a tree; `width` halves of the stored bytes.
struct FormShape {
  int parent;
  int width;
};
constexpr FormShape kForms[] = {{-1, 2}, {0, 2}, {0, 1}, {2, 2}, {0, 4}};

int64_t BytesIn(int64_t stored_bytes, int form) {
  return std::max(kPage, (stored_bytes * kForms[form].width / 2 + kPage - 1) / kPage * kPage);
}

struct Shape {
  std::vector<Stop> stops;
  int compute;
  int rest, limited;
};

// Ways of profiles: rest on disk, host or device; pass through other forms; compute in one of their own.
std::vector<Shape> Shapes() {
  return {
      {{}, 0, -1, -1},
      {{{Tier::kHost, 0}}, 0, 0, -1},
      {{{Tier::kDevice, 0}}, 0, 0, -1},
      {{{Tier::kDevice, 0}}, 0, -1, 0},
      {{{Tier::kHost, 0}, {Tier::kDevice, 0}}, 1, 0, 1},
      {{{Tier::kHost, 2}, {Tier::kDevice, 3}}, 3, 0, 1},
      {{{Tier::kDevice, 0}}, 4, 0, -1},
      {{{Tier::kHost, 2}, {Tier::kDevice, 2}, {Tier::kDevice, 3}}, 3, 0, 1},
      {{}, 1, -1, -1},
      {{{Tier::kDevice, 0}, {Tier::kDevice, 1}}, 1, 0, 1},
  };
}

class Maker {
 public:
  explicit Maker(uint64_t seed) : seed_(seed), random_(seed * 7919 + 13), laps_(seed), decisions_(seed), hosts_(seed) {}

  Scenario Make(Kind kind) {
    s_.options.max_loads = 1 + Below(4);
    s_.options.max_riders = 1 + Below(32);
    s_.options.max_waiting = Below(3) == 0 ? Below(4) : 64;
    s_.options.ageing = absl::Microseconds(Below(5) == 0 ? 0 : Below(2000));
    s_.options.growth_pause = absl::Microseconds(1 + Below(100));
    s_.options.idle_release = absl::Microseconds(Below(2) == 0 ? Below(3000) : 1000000);
    s_.transfer = 20 + Below(300);
    s_.operation = 2 + Below(40);
    s_.freeing = Below(60);
    s_.late_finish = Below(2) == 0;
    if (Below(4) == 0) s_.renew_at = 100 + Below(2000);
    for (const FormShape& form : kForms) s_.parents.push_back(form.parent);
    MakeWeights();
    MakeMemories();
    MakeClients();
    if (kind != Kind::kCalm) {
      s_.faults_until = 20 + Below(400);
      s_.fault_gap = 20 + Below(Below(2) == 0 ? 800 : 100);
    }
    if (kind == Kind::kRefusals) s_.system_bytes = s_.budget_bytes[1] / 2 + Below(s_.budget_bytes[1] / 2 + 1);
    s_.pressed = kind != Kind::kCalm && Below(2) == 0;
    return std::move(s_);
  }

 private:
  // All that there is, nearly all, or some: apart, as laps are.
  void TakeOfHost(Scenario::Client& client) {
    const int64_t room = s_.budget_bytes[0] - s_.fixed_bytes[0];
    const auto below = [this](int64_t n) {
      return n <= 0 ? 0 : static_cast<int64_t>(hosts_() % static_cast<uint64_t>(n));
    };
    const int64_t kind = below(4);
    int64_t& bytes = client.request.host_bytes;
    if (kind == 0) bytes = room;
    if (kind == 1) bytes = std::max<int64_t>(0, room - below(3) * unit_);
    if (kind == 2) bytes = below(room / 4 / unit_ + 1) * unit_;
    if (client.comes_again) bytes = std::min(bytes, room / 4);
  }

  int64_t Below(int64_t n) { return n <= 0 ? 0 : static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }

  // From modules of a page to some of 300 MB, all in multiples of `unit_`.
  void MakeWeights() {
    unit_ = Below(4) == 0 ? 4801 * kPage : kPage;
    largest_ = 1 + Below(16);
    for (int64_t i = 1 + Below(3); i > 0; --i) {
      std::vector<int64_t> modules;
      for (int64_t m = 2 + Below(20); m > 0; --m) {
        const int64_t units = 1 + Below(Below(4) == 0 ? largest_ : std::max<int64_t>(1, largest_ / 3));
        modules.push_back(Below(8) == 0 ? kPage : units * unit_);
      }
      s_.weights.push_back(std::move(modules));
    }
  }

  void MakeMemories() {
    int64_t widest = 0;
    for (const auto& modules : s_.weights) widest = std::max(widest, *std::max_element(modules.begin(), modules.end()));
    const int64_t fixed = Below(8) * unit_;
    s_.fixed_bytes = {fixed};
    s_.budget_bytes = {fixed + Below(30) * unit_};
    for (int64_t i = Below(4) == 0 ? 2 + Below(2) : 1; i > 0; --i) {
      s_.devices.push_back({Below(2) == 0});
      s_.fixed_bytes.push_back(Below(4) == 0 ? Below(4) * unit_ : 0);
      s_.budget_bytes.push_back(s_.fixed_bytes.back() + 2 * widest + Below(Below(2) == 0 ? 6 : 60) * unit_);
    }
  }

  void MakeClients() {
    const int64_t count = 1 + Below(Below(4) == 0 ? 32 : 8);
    int64_t at = 0;
    for (int64_t i = 0; i < count; ++i) {
      Scenario::Client client;
      const auto weights = static_cast<size_t>(Below(static_cast<int64_t>(s_.weights.size())));
      client.request.weights = static_cast<WeightsId>(weights);
      client.request.device = DeviceMemory(static_cast<int>(Below(static_cast<int64_t>(s_.devices.size()))));
      const size_t device = Index(client.request.device);
      const int64_t budget = s_.budget_bytes[device] - s_.fixed_bytes[device];
      if (Below(2) == 0) client.request.limit_bytes = Below(budget / unit_ + 1) * unit_;
      const std::vector<Shape> shapes = Shapes();
      const Shape& shape = shapes[static_cast<size_t>(Below(static_cast<int64_t>(shapes.size())))];
      int64_t widest = 0;
      // Some do without modules, each without others; nobody without all.
      const int64_t skips = Below(3) == 0 ? Below(100) : 0,
                    taken = Below(static_cast<int64_t>(s_.weights[weights].size()));
      for (const int64_t stored : s_.weights[weights]) {
        Route route;
        if (Below(100) < skips && static_cast<int64_t>(client.request.routes.size()) != taken) {
          client.request.routes.push_back(std::move(route));
          continue;
        }
        route.stops = shape.stops;
        for (const Stop& stop : route.stops) route.stop_bytes.push_back(BytesIn(stored, stop.form));
        route.compute = shape.compute;
        route.compute_bytes = BytesIn(stored, shape.compute);
        route.rest = shape.rest;
        route.limited = shape.limited;
        widest = std::max(widest, route.compute_bytes);
        client.request.routes.push_back(std::move(route));
      }
      // Activations that leave room for exactly one module, or nearly, are what stops a careless policy.
      const int64_t room = std::max<int64_t>(0, budget - widest);
      const int64_t kind = Below(4);
      client.comes_again = i + 1 < count && Below(3) == 0;
      client.request.activation_bytes = kind == 0   ? room
                                        : kind == 1 ? std::max<int64_t>(0, room - Below(3) * unit_)
                                                    : Below(room / 4 / unit_ + 1) * unit_;
      if (client.comes_again) client.request.activation_bytes = std::min(client.request.activation_bytes, room / 4);
      client.request.priority = Below(2) == 0 ? Priority::kInteractive : Priority::kBatch;
      client.request.join = static_cast<JoinPolicy>(Below(3));
      client.joins_at = at;
      if (Below(2) == 0) at += Below(800);
      if (Below(8) == 0) client.cancels_at = at + Below(3000);
      client.operation = 1 + Below(s_.operation);
      // Of every third seed, apart: the others stay what they were.
      if (seed_ % 3 == 0 && laps_() % 2 == 0) client.laps = static_cast<int>(2 + laps_() % 4);
      if (seed_ % 2 == 0 && !s_.devices[device - 1].in_host_memory) TakeOfHost(client);
      client.decides = client.laps > 1 && decisions_() % 2 == 0;
      s_.clients.push_back(std::move(client));
    }
  }

  const uint64_t seed_;
  std::mt19937_64 random_, laps_, decisions_, hosts_;
  int64_t unit_ = kPage;
  int64_t largest_ = 1;
  Scenario s_;
};

}  // namespace

Scenario MakeScenario(Kind kind, uint64_t seed) {
  return kind == Kind::kReal ? MakeRealScenario(seed) : Maker(seed).Make(kind);
}

absl::string_view Name(Kind kind) {
  switch (kind) {
    case Kind::kCalm:
      return "calm";
    case Kind::kFaults:
      return "faults";
    case Kind::kRefusals:
      return "refusals";
    case Kind::kReal:
      return "real";
  }
  return "unknown";
}

}  // namespace ditserve::simulation
