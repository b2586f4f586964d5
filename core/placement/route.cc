#include "core/placement/route.h"

#include <algorithm>
#include <utility>

namespace ditserve {
namespace {

bool LeadsTo(const CopyForm& from, const CopyForm& to) {
  return std::equal(from.precisions.begin(), from.precisions.end(), to.precisions.begin(), to.precisions.end(),
                    [](const Precision& a, const Precision& b) { return a.IsPrefixOf(b); });
}

// Walks one module along the stations of a profile.
class RouteMaker {
 public:
  RouteMaker(const ModelWeights::Module& module, const Station& computation, const Device& device, FormTable& forms)
      : module_(module), computation_(computation), device_(device), forms_(forms) {
    for (const StoredTensor* stored : module.stored) precisions_.emplace_back(stored->dtype);
  }

  // Passes `station` and returns the number of its stop, -1 on disk.
  int Pass(const Station& station) {
    if (station.tier == Tier::kDisk) return -1;
    for (Precision& precision : precisions_) precision = precision.Through(station.dtype);
    const Stop stop = {station.tier, forms_.Intern({precisions_, HeldDType(station)})};
    if (route_.stops.empty() || route_.stops.back() != stop) {
      route_.stops.push_back(stop);
      route_.stop_bytes.push_back(BytesAt(stop));
    }
    return static_cast<int>(route_.stops.size()) - 1;
  }

  void Rest(int stop) { route_.rest = stop; }
  void Limit(int stop) {
    if (stop >= 0 && route_.stops[stop].tier == Tier::kDevice) route_.limited = stop;
  }

  Route Compute() {
    for (Precision& precision : precisions_) precision = precision.Through(computation_.dtype);
    route_.compute = forms_.Intern({precisions_, OperandDType()});
    route_.compute_bytes = BytesAt({Tier::kDevice, route_.compute});
    return std::move(route_);
  }

 private:
  int64_t BytesAt(const Stop& stop) const {
    const bool in_host_memory = device_.IsInHostMemory(MemoryAt(stop.tier));
    const int64_t granule = device_.granule_bytes(MemoryAt(stop.tier));
    const int64_t bytes = LayoutOf(module_, forms_.form(stop.form).dtype, in_host_memory).size_bytes;
    return (bytes + granule - 1) / granule * granule;
  }
  Memory MemoryAt(Tier tier) const { return tier == Tier::kDevice ? device_.memory() : Memory::kHost; }
  // A dtype of which every value of the module now is a value.
  DType Values() const {
    const DType first = precisions_.front().values_in();
    const bool equal = std::all_of(precisions_.begin(), precisions_.end(),
                                   [&](const Precision& precision) { return precision.values_in() == first; });
    return equal ? first : DType::kFloat32;
  }
  // What operations read.
  DType OperandDType() const { return device_.OperandDType(device_.ArithmeticDType(computation_.dtype), Values()); }
  // How a copy is held at a station: as operations read it, where that is where they are or takes no more memory.
  DType HeldDType(const Station& station) const {
    const DType operand = OperandDType();
    const bool as_good = IsLossless(Values(), operand) && SizeOf(operand) <= SizeOf(station.dtype);
    return station == computation_ || as_good ? operand : station.dtype;
  }

  const ModelWeights::Module& module_;
  const Station computation_;
  const Device& device_;
  FormTable& forms_;
  std::vector<Precision> precisions_;
  Route route_;
};

}  // namespace

FormId FormTable::Intern(const CopyForm& form) {
  const auto found = std::find(forms_.begin(), forms_.end(), form);
  if (found != forms_.end()) return static_cast<FormId>(found - forms_.begin());
  forms_.push_back(form);
  leads_.emplace_back();
  for (size_t from = 0; from < forms_.size(); ++from) {
    while (leads_[from].size() < forms_.size()) {
      leads_[from].push_back(LeadsTo(forms_[from], forms_[leads_[from].size()]));
    }
  }
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
