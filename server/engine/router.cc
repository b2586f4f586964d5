#include "server/engine/router.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "absl/strings/str_cat.h"
#include "core/base/error_details.h"
#include "core/base/status_macros.h"
#include "core/placement/route_maker.h"
#include "models/errors.h"

namespace ditserve {
namespace {

// Ends that are no farther apart than this are taken for equal: as near as predictions come (docs/plan.md).
constexpr double kNear = 1.25;

int64_t MissingBytes(const RideOutlook& outlook) {
  const auto shortage = ShortageOf(outlook.fits);
  return shortage ? shortage->needed_bytes - shortage->budget_bytes : std::numeric_limits<int64_t>::max();
}

}  // namespace

absl::Duration PredictedEnd(const RideOutlook& outlook) {
  return outlook.wait + std::max(outlook.moving, outlook.compute + outlook.compute_others);
}

size_t ChooseDevice(absl::Span<const RideOutlook> outlooks) {
  bool any_fits = false;
  absl::Duration first = absl::InfiniteDuration();
  for (const RideOutlook& outlook : outlooks) {
    if (!outlook.fits.ok()) continue;
    any_fits = true;
    first = std::min(first, PredictedEnd(outlook));
  }
  const auto is_better = [&](const RideOutlook& a, const RideOutlook& b) {
    if (!any_fits) return MissingBytes(a) < MissingBytes(b);
    const auto is_near = [&](const RideOutlook& each) { return each.fits.ok() && PredictedEnd(each) <= kNear * first; };
    if (is_near(a) != is_near(b)) return is_near(a);
    return is_near(a) && a.requests < b.requests;
  };
  return static_cast<size_t>(std::min_element(outlooks.begin(), outlooks.end(), is_better) - outlooks.begin());
}

absl::StatusOr<RideOptions> WayTo(const Device& device, ServedModel& model, const ForwardShape& shape,
                                  const Profile& profile, int64_t beside_bytes) {
  RideOptions way;
  way.device = DeviceOf(device.memory());
  DITSERVE_RETURN_IF_ERROR(CatchStatus([&] {
    const at::ScalarType arithmetic = ArithmeticOn(device, profile);
    way.activation_bytes = model.ActivationBytes(shape, arithmetic);
    if (!device.computes_in_host_memory()) way.host_bytes = model.dit->HostPeakBytes(shape, arithmetic);
  }));
  (device.computes_in_host_memory() ? way.activation_bytes : way.host_bytes) += beside_bytes;
  return way;
}

absl::StatusOr<std::vector<RideOptions>> WaysFor(absl::Span<const EngineDevice> devices, ServedModel& model,
                                                 const ForwardShape& shape, const Profile& profile,
                                                 int64_t beside_bytes) {
  std::vector<const Device*> named, able;
  for (const EngineDevice& each : devices) {
    if (!profile.MayUse(each.device->name())) continue;
    named.push_back(each.device);
    if (CheckComputation(profile, *each.device).ok()) able.push_back(each.device);
  }
  std::vector<RideOptions> ways;
  for (const Device* const device : able.empty() ? named : able) {
    DITSERVE_ASSIGN_OR_RETURN(ways.emplace_back(), WayTo(*device, model, shape, profile, beside_bytes));
  }
  if (ways.empty()) return absl::InvalidArgumentError(absl::StrCat("no device is named '", profile.device, "'"));
  return ways;
}

}  // namespace ditserve
