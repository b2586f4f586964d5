#include "core/route.h"

#include <algorithm>
#include <utility>

namespace ditserve {
namespace {

// Walks one module along the stations of a profile.
class RouteMaker {
 public:
  RouteMaker(const ModelWeights::Module& module, const Station& computation, const Device& device, FormTable& forms)
      : computation_(computation), arithmetic_(device.ArithmeticDType(computation.dtype)), forms_(forms) {
    for (const StoredTensor* stored : module.stored) precisions_.emplace_back(stored->dtype);
  }

  // Passes `station` and returns the number of its stop, -1 on disk.
  int Pass(const Station& station) {
    if (station.tier == Tier::kDisk) return -1;
    for (Precision& precision : precisions_) precision = precision.Through(station.dtype);
    // On the device, what is in computation's dtype is held as operations read it.
    const bool computes = station == computation_;
    const Stop stop = {station.tier, forms_.Intern({precisions_, computes ? arithmetic_ : station.dtype})};
    if (route_.stops.empty() || route_.stops.back() != stop) route_.stops.push_back(stop);
    return static_cast<int>(route_.stops.size()) - 1;
  }

  void Rest(int stop) { route_.rest = stop; }
  void Limit(int stop) {
    if (stop >= 0 && route_.stops[stop].tier == Tier::kDevice) route_.limited = stop;
  }

  Route Compute() {
    for (Precision& precision : precisions_) precision = precision.Through(computation_.dtype);
    route_.compute = forms_.Intern({precisions_, arithmetic_});
    return std::move(route_);
  }

 private:
  const Station computation_;
  const DType arithmetic_;
  FormTable& forms_;
  std::vector<Precision> precisions_;
  Route route_;
};

}  // namespace

FormId FormTable::Intern(const CopyForm& form) {
  const auto found = std::find(forms_.begin(), forms_.end(), form);
  if (found != forms_.end()) return static_cast<FormId>(found - forms_.begin());
  forms_.push_back(form);
  return static_cast<FormId>(forms_.size()) - 1;
}

std::vector<Route> MakeRoutes(const ModelWeights& model, const Profile& profile, const Device& device,
                              FormTable& forms) {
  std::vector<Route> routes;
  routes.reserve(model.size());
  for (ModuleIndex i = 0; i < model.size(); ++i) {
    const ModelWeights::Module& module = model.module(i);
    RouteMaker maker(module, profile.computation, device, forms);
    if (profile.Manages(module.spec.type)) {
      maker.Rest(maker.Pass(profile.offload));
      const int onload = maker.Pass(profile.onload);
      const int preparing = maker.Pass(profile.preparing);
      if (preparing != onload) maker.Limit(preparing);
    } else {
      maker.Rest(maker.Pass(profile.computation));
    }
    routes.push_back(maker.Compute());
  }
  return routes;
}

}  // namespace ditserve
