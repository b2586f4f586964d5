// What the ResidencyManager tells of requests that have not come: it reads, and changes nothing.
#include <algorithm>
#include <limits>
#include <utility>

#include "core/residency/residency_manager.h"

namespace ditserve {

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
  std::optional<Policy> trial;
  FormTable forms;
  ForecastRequest request;
  request.riders = riders;
  request.computing = std::move(computing);
  absl::Duration now;
  const TransferSpeeds speeds = SpeedsOf(options.device);
  {
    const absl::MutexLock lock(&mutex_);
    now = clock_->Now();
    forms = forms_;
    trial.emplace(policy_, [&forms](FormId from, FormId to) { return forms.Leads(from, to); });
    request.ride = RequestLocked(model, profile, options, forms);
    request.form_bytes = BytesInForms(*models_[static_cast<size_t>(model)], forms);
    request.disk_bytes_per_second = speeds.checkpoint.value_or(request.disk_bytes_per_second);
    request.copy_bytes_per_second = speeds.copies.value_or(request.disk_bytes_per_second);
    request.fresh_bytes_per_second = speeds.fresh;
    const bool apart = !devices_[static_cast<size_t>(options.device)].device->computes_in_host_memory();
    if (apart) request.own_copy_bytes_per_second = std::numeric_limits<double>::infinity();
  }
  return ForecastLaps(*trial, request, now);
}

std::vector<RideOutlook> ResidencyManager::Outlooks(ModelId model, const Profile& profile,
                                                    absl::Span<const RideOptions> ways) const {
  const absl::MutexLock lock(&mutex_);
  FormTable forms = forms_;
  std::optional<Policy::JoinRequest> request;
  return OutlooksLocked(model, profile, ways, forms, request);
}

TransferSpeeds ResidencyManager::SpeedsOf(int device) const {
  // What is asked of a device that goes on beside its executor is not waited for: how fast it is it knows itself.
  const std::optional<double> of_device = devices_[static_cast<size_t>(device)].device->CopySpeed();
  const absl::MutexLock lock(&mutex_);
  TransferSpeeds speeds = paces_[static_cast<size_t>(device)].speeds();
  if (of_device) speeds.copies = of_device;
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
