// What the ResidencyManager tells of requests that have not come: it reads, and changes nothing.
#include <algorithm>
#include <limits>
#include <utility>

#include "core/base/processor_time.h"
#include "core/devices/cast.h"
#include "core/residency/residency_manager.h"

namespace ditserve {
namespace {

// A conversion that was never done is tried: of so many elements.
constexpr int64_t kTriedElements = 1 << 19;

TimedBytes TryConversion(const TransferStep& step) {
  const std::vector<std::byte> from(static_cast<size_t>(kTriedElements * SizeOf(step.front())));
  std::vector<std::byte> to(static_cast<size_t>(kTriedElements * SizeOf(step.back())));
  const absl::Duration begun = ProcessorTime();
  Cast(from.data(), step.front(), absl::MakeSpan(step).subspan(1, step.size() - 2), to.data(), step.back(),
       kTriedElements);
  return {static_cast<int64_t>(from.size()), 0, ProcessorTime() - begun};
}

// Processor time of loads: as a transfer takes them, by what transfers took. Ownership: arguments must outlive it.
class WorkOfLoads {
 public:
  WorkOfLoads(const ModelWeights& weights, const FormTable& forms, const Device& device, TransferWork work)
      : weights_(&weights), forms_(&forms), device_(&device), work_(std::move(work)) {}

  absl::Duration operator()(const StartLoad& load) {
    const ModelWeights::Module& module = weights_->module(load.module);
    std::vector<const CopyForm*> targets;
    for (const Copy* target : load.targets) targets.push_back(&forms_->form(target->key.form));
    const bool as_stored =
        LayoutOf(module, *targets.front(), device_->IsInHostMemory(load.targets.front()->key.memory)).as_stored;
    const CopyForm* const source = load.source == nullptr ? nullptr : &forms_->form(load.source->key.form);
    const TransferPath path = PathOf(module, source, targets, as_stored);
    double seconds = 0;
    if (source == nullptr) seconds += static_cast<double>(module.stored_bytes) * work_.Of({}).value_or(0);
    for (size_t i = 0; i < targets.size(); ++i) {
      if (!device_->IsInHostMemory(load.targets[i]->key.memory)) continue;
      seconds += static_cast<double>(load.targets[i]->grown_bytes) * work_.OfFresh();
      if (i == 0 && path.read_in_place) continue;
      for (size_t parameter = 0; parameter < path.steps[i].size(); ++parameter) {
        const TransferStep& step = path.steps[i][parameter];
        const int64_t bytes = ElementCount(module.stored[parameter]->shape) * SizeOf(step.front());
        seconds += static_cast<double>(bytes) * SecondsPerByte(step);
      }
    }
    return absl::Seconds(seconds);
  }

 private:
  double SecondsPerByte(const TransferStep& step) {
    if (!work_.Of(step)) work_.Add(step, TryConversion(step));
    return *work_.Of(step);
  }

  const ModelWeights* weights_;
  const FormTable* forms_;
  const Device* device_;
  TransferWork work_;
};

}  // namespace

int64_t ResidencyManager::WindowBytes(ModelId model, const Profile& profile, absl::Span<const ModuleIndex> skips,
                                      int device) const {
  const absl::MutexLock lock(&mutex_);
  FormTable forms = forms_;
  std::vector<Route> routes = RoutesLocked(model, profile, device, forms);
  for (const ModuleIndex skipped : skips) routes[static_cast<size_t>(skipped)] = Route();
  int64_t widest = 0;
  for (const Route& route : routes) widest = std::max(widest, route.compute_bytes);
  return widest;
}

absl::StatusOr<Forecast> ResidencyManager::ForecastRide(ModelId model, const Profile& profile,
                                                        const RideOptions& options, int riders,
                                                        std::vector<absl::Duration> computing) const {
  const Device& device = *devices_[static_cast<size_t>(options.device)].device;
  std::optional<Policy> trial;
  FormTable forms;
  std::shared_ptr<const ModelWeights> weights;
  ForecastRequest request;
  request.riders = riders;
  request.computing = std::move(computing);
  absl::Duration now;
  SetSpeeds(options.device, request);
  {
    const absl::MutexLock lock(&mutex_);
    now = clock_->Now();
    forms = forms_;
    trial.emplace(policy_, [&forms](FormId from, FormId to) { return forms.Leads(from, to); });
    request.ride = RequestLocked(model, profile, options, forms);
    weights = models_[static_cast<size_t>(model)];
  }
  request.form_bytes = BytesInForms(*weights, forms);
  request.work = WorkOfLoads(*weights, forms, device, transfers_->work());
  return ForecastLaps(*trial, request, now);
}

std::vector<RideOutlook> ResidencyManager::Outlooks(ModelId model, const Profile& profile,
                                                    absl::Span<const RideOptions> ways) const {
  const absl::MutexLock lock(&mutex_);
  FormTable forms = forms_;
  std::optional<Policy::JoinRequest> request;
  return OutlooksLocked(model, profile, ways, forms, request);
}

void ResidencyManager::SetSpeeds(int device, ForecastRequest& request) const {
  const Device& of = *devices_[static_cast<size_t>(device)].device;
  request.load_processors = transfers_->processors_at_work();
  const TransferSpeeds speeds = SpeedsOf(device);
  if (of.computes_in_host_memory()) {
    // Copies are work and nothing else.
    request.copy_bytes_per_second = std::numeric_limits<double>::infinity();
    request.computing_processors = transfers_->processors();
  } else {
    request.copy_bytes_per_second = speeds.copies.value_or(speeds.checkpoint.value_or(request.disk_bytes_per_second));
    request.own_copy_bytes_per_second = std::numeric_limits<double>::infinity();
  }
  const absl::MutexLock lock(&mutex_);
  if (const auto waited = paces_[static_cast<size_t>(device)].checkpoint()) request.disk_bytes_per_second = 1 / *waited;
}

TransferSpeeds ResidencyManager::SpeedsOf(int device) const {
  Device& of = *devices_[static_cast<size_t>(device)].device;
  const TransferWork work = transfers_->work();
  const auto speed = [&](double waited, double worked) -> std::optional<double> {
    const double seconds = waited + worked / transfers_->processors_at_work();
    return seconds > 0 ? std::optional(1 / seconds) : std::nullopt;
  };
  TransferSpeeds speeds;
  // What is asked of a device that goes on beside its executor is not waited for: how fast it is it knows itself.
  speeds.copies = of.computes_in_host_memory() ? speed(0, work.OfConversions().value_or(0)) : of.CopySpeed();
  speeds.fresh = speed(0, work.OfFresh());
  const absl::MutexLock lock(&mutex_);
  const std::optional<double> waited = paces_[static_cast<size_t>(device)].checkpoint();
  if (waited) speeds.checkpoint = speed(*waited, work.Of({}).value_or(0));
  return speeds;
}

bool ResidencyManager::HaveEqualValues(ModelId model, const Profile& a, const Profile& b, int device) const {
  const absl::MutexLock lock(&mutex_);
  FormTable forms = forms_;
  const std::vector<Route> of_a = RoutesLocked(model, a, device, forms);
  const std::vector<Route> of_b = RoutesLocked(model, b, device, forms);
  return a.computation.dtype == b.computation.dtype &&
         std::equal(of_a.begin(), of_a.end(), of_b.begin(), of_b.end(),
                    [](const Route& x, const Route& y) { return x.compute == y.compute; });
}

}  // namespace ditserve
