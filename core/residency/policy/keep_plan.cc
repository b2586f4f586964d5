#include "core/residency/policy/keep_plan.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"

namespace ditserve {
namespace {

class Planner {
 public:
  Planner(absl::Span<const KeepWish> wishes, std::array<int64_t, 2> room_bytes, bool in_host_memory)
      : wishes_(wishes), room_bytes_(room_bytes), in_host_memory_(in_host_memory) {
    size_t modules = 0;
    for (const KeepWish& wish : wishes) {
      plan_.kept.emplace_back(wish.routes->size());
      served_.emplace_back(wish.routes->size());
      limited_bytes_.push_back(wish.limited_bytes);
      modules = std::max(modules, wish.routes->size());
    }
    for (ModuleIndex m = 0; m < static_cast<ModuleIndex>(modules); ++m) order_.emplace_back(KeepRank(m), m);
    std::sort(order_.begin(), order_.end());
  }

  KeepPlan Plan() {
    for (int turn = 0; turn <= kLast; ++turn) {
      ForEach([&](size_t wish, ModuleIndex module) {
        const Route& route = (*wishes_[wish].routes)[module];
        for (size_t i = 0; i < route.stops.size(); ++i) {
          if (TurnOf(route, route.stops[i], served_[wish][module]) == turn) Consider(wish, module, i);
        }
      });
    }
    plan_.complete = true;
    ForEach([&](size_t wish, ModuleIndex module) { plan_.complete &= IsServed(wish, module); });
    return std::move(plan_);
  }

 private:
  static constexpr int kLast = 3;

  // Calls `visit(wish, module)`, by modules' ranks.
  template <typename Visit>
  void ForEach(Visit visit) const {
    for (const auto& [rank, module] : order_) {
      for (size_t wish = 0; wish < wishes_.size(); ++wish) {
        if (static_cast<size_t>(module) < wishes_[wish].routes->size()) visit(wish, module);
      }
    }
  }

  bool IsOperand(const Route& route, const Stop& stop) const {
    return stop.form == route.compute && (stop.tier == Tier::kDevice || in_host_memory_);
  }

  // Where operations read host memory, a copy there is as good as one on the device, and further down.
  int TurnOf(const Route& route, const Stop& stop, bool served) const {
    const Tier first = in_host_memory_ ? Tier::kHost : Tier::kDevice;
    if (IsOperand(route, stop)) return stop.tier == first ? 0 : served ? -1 : 1;
    return served ? kLast : 2;
  }

  void Consider(size_t wish, ModuleIndex module, size_t stop_index) {
    const Route& route = (*wishes_[wish].routes)[module];
    const Stop& stop = route.stops[stop_index];
    const int64_t bytes = route.stop_bytes[stop_index];
    const bool limited = static_cast<int>(stop_index) == route.limited;
    if (limited && bytes > limited_bytes_[wish]) return;
    bool& chosen = chosen_[{wishes_[wish].model, module, stop.tier, stop.form}];
    if (!chosen) {
      int64_t& room = room_bytes_[stop.tier == Tier::kDevice ? 0 : 1];
      if (bytes > room) return;
      room -= bytes;
      chosen = true;
    }
    if (limited && limited_bytes_[wish] != KeepWish::kUnlimited) limited_bytes_[wish] -= bytes;
    plan_.kept[wish][module] |= uint32_t{1} << stop_index;
    if (IsOperand(route, stop)) served_[wish][module] = true;
  }

  // By a copy of its own, or by one that another wish lets stay; or it needs none.
  bool IsServed(size_t wish, ModuleIndex module) const {
    const Route& route = (*wishes_[wish].routes)[module];
    if (served_[wish][module] || !route.taken()) return true;
    const auto stays = [&](Tier tier) {
      const auto found = chosen_.find({wishes_[wish].model, module, tier, route.compute});
      return found != chosen_.end() && found->second;
    };
    return stays(Tier::kDevice) || (in_host_memory_ && stays(Tier::kHost));
  }

  const absl::Span<const KeepWish> wishes_;
  std::array<int64_t, 2> room_bytes_;
  const bool in_host_memory_;
  std::vector<std::pair<double, ModuleIndex>> order_;  // By rank.
  std::vector<int64_t> limited_bytes_;                 // What is left of each wish's.
  std::vector<std::vector<bool>> served_;              // Whether an operand stays, by wish and module.
  absl::flat_hash_map<std::tuple<int, ModuleIndex, Tier, FormId>, bool> chosen_;
  KeepPlan plan_;
};

}  // namespace

// Multiples of the golden ratio, modulo 1: no other number's leave stretches so alike.
double KeepRank(ModuleIndex module) {
  constexpr double kGoldenRatio = 0.6180339887498949;
  const double multiple = module * kGoldenRatio;
  return multiple - std::floor(multiple);
}

KeepPlan PlanKept(absl::Span<const KeepWish> wishes, std::array<int64_t, 2> room_bytes, bool in_host_memory) {
  return Planner(wishes, room_bytes, in_host_memory).Plan();
}

}  // namespace ditserve
