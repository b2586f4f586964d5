#include "core/placement/route_maker.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/error_details.h"

namespace ditserve {
namespace {

bool EachLeadsTo(const CopyForm& from, const CopyForm& to) {
  return std::equal(from.encodings.begin(), from.encodings.end(), to.encodings.begin(), to.encodings.end(), LeadsTo);
}

// Walks one module along the stations of a profile.
class RouteMaker {
 public:
  // `computation` is of the module, `arithmetic` of what its operations compute with.
  RouteMaker(const ModelWeights::Module& module, const Station& computation, DType arithmetic, const Device& device,
             FormTable& forms)
      : module_(module), computation_(computation), arithmetic_(arithmetic), device_(device), forms_(forms) {
    for (const StoredTensor* stored : module.stored) {
      form_.encodings.push_back({Precision(stored->dtype), stored->dtype});
    }
  }

  // Passes `station` and returns the number of its stop, -1 on disk.
  int Pass(const Station& station) {
    if (station.tier == Tier::kDisk) return -1;
    RoundThrough(station.dtype);
    const Stop stop = {station.tier, InternIn(HeldDType(station))};
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
    RoundThrough(computation_.dtype);
    route_.compute = InternIn(OperandDType());
    route_.compute_bytes = BytesAt({Tier::kDevice, route_.compute});
    return std::move(route_);
  }

 private:
  void RoundThrough(DType dtype) {
    for (Encoding& encoding : form_.encodings) encoding.values = encoding.values.Through(dtype);
  }
  // The form of the values as they are now, all of them in `dtype`.
  FormId InternIn(DType dtype) {
    for (Encoding& encoding : form_.encodings) encoding.dtype = dtype;
    return forms_.Intern(form_);
  }
  int64_t BytesAt(const Stop& stop) const {
    const bool in_host_memory = device_.IsInHostMemory(MemoryAt(stop.tier));
    const int64_t granule = device_.granule_bytes(MemoryAt(stop.tier));
    const int64_t bytes = LayoutOf(module_, forms_.form(stop.form), in_host_memory).size_bytes;
    return (bytes + granule - 1) / granule * granule;
  }
  Memory MemoryAt(Tier tier) const { return tier == Tier::kDevice ? device_.memory() : Memory::kHost; }
  // A dtype of which every value of the module now is a value.
  DType Values() const {
    const DType first = form_.encodings.front().values.values_in();
    const bool equal = std::all_of(form_.encodings.begin(), form_.encodings.end(),
                                   [&](const Encoding& encoding) { return encoding.values.values_in() == first; });
    return equal ? first : DType::kFloat32;
  }
  // What operations read.
  DType OperandDType() const { return device_.OperandDType(arithmetic_, Values()); }
  // How a copy is held at a station: as operations read it, where that is where they are or takes no more memory.
  DType HeldDType(const Station& station) const {
    const DType operand = OperandDType();
    const bool as_good = IsLossless(Values(), operand) && SizeOf(operand) <= SizeOf(station.dtype);
    return station == computation_ || as_good ? operand : station.dtype;
  }

  const ModelWeights::Module& module_;
  const Station computation_;
  const DType arithmetic_;
  const Device& device_;
  FormTable& forms_;
  CopyForm form_;
  Route route_;
};

int64_t BytesIn(const CopyForm& form, const ModelWeights::Module& module) {
  if (form.encodings.size() != module.stored.size()) return 0;  // Of another type of module.
  int64_t bytes = 0;
  for (size_t i = 0; i < module.stored.size(); ++i) {
    bytes += ElementCount(module.stored[i]->shape) * SizeOf(form.encodings[i].dtype);
  }
  return bytes;
}

}  // namespace

FormId FormTable::Intern(const CopyForm& form) {
  const auto found = std::find(forms_.begin(), forms_.end(), form);
  if (found != forms_.end()) return static_cast<FormId>(found - forms_.begin());
  forms_.push_back(form);
  leads_.emplace_back();
  for (size_t from = 0; from < forms_.size(); ++from) {
    while (leads_[from].size() < forms_.size()) {
      leads_[from].push_back(EachLeadsTo(forms_[from], forms_[leads_[from].size()]));
    }
  }
  return static_cast<FormId>(forms_.size()) - 1;
}

absl::Status CheckComputation(const Profile& profile, const Device& device) {
  const absl::Status status = device.CanCompute(profile.computation.dtype);
  if (status.ok()) return status;
  if (profile.name.empty()) return FieldError("vram_config.computation_dtype", status.message(), status.code());
  return FieldError("profile", absl::StrCat("'", profile.name, "': ", status.message()), status.code());
}

std::vector<Route> MakeRoutes(const ModelWeights& model, const Profile& profile, const Device& device,
                              FormTable& forms) {
  std::vector<Route> routes;
  routes.reserve(model.size());
  for (ModuleIndex i = 0; i < model.size(); ++i) {
    const ModelWeights::Module& module = model.module(i);
    const Station computation = {profile.computation.tier, ComputationDType(module.spec, profile.computation.dtype)};
    // In a pass in float8 activations are bfloat16 on every device.
    const bool float8 = profile.computation.dtype == DType::kFloat8E4M3;
    const DType arithmetic = float8 ? computation.dtype : device.ArithmeticDType(computation.dtype);
    RouteMaker maker(module, computation, arithmetic, device, forms);
    if (profile.Manages(module.spec.type)) {
      maker.Rest(maker.Pass(profile.offload));
      const int onload = maker.Pass(profile.onload);
      const int preparing = maker.Pass(profile.preparing);
      if (preparing != onload) maker.Limit(preparing);
    } else {
      maker.Rest(maker.Pass(computation));
    }
    routes.push_back(maker.Compute());
  }
  return routes;
}

bool HaveEqualRoutes(const Device& a, const Device& b) {
  if (&a == &b) return true;
  constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3};
  for (const DType dtype : kDTypes) {
    if (a.ArithmeticDType(dtype) != b.ArithmeticDType(dtype)) return false;
    for (const DType values : kDTypes) {
      if (a.OperandDType(dtype, values) != b.OperandDType(dtype, values)) return false;
    }
  }
  return a.computes_in_host_memory() == b.computes_in_host_memory() &&
         a.granule_bytes(Memory::kHost) == b.granule_bytes(Memory::kHost) &&
         a.granule_bytes(a.memory()) == b.granule_bytes(b.memory());
}

std::vector<std::vector<int64_t>> BytesInForms(const ModelWeights& model, const FormTable& forms) {
  std::vector<std::vector<int64_t>> bytes(static_cast<size_t>(model.size()));
  for (ModuleIndex i = 0; i < model.size(); ++i) {
    for (FormId form = 0; form < forms.size(); ++form) {
      bytes[static_cast<size_t>(i)].push_back(BytesIn(forms.form(form), model.module(i)));
    }
  }
  return bytes;
}

}  // namespace ditserve
