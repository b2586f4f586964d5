// What the policy tells of requests that have not come: it reads, and changes nothing.
#include <algorithm>

#include "core/residency/policy/policy.h"

namespace ditserve {
namespace {

// What was learned on the device, or while nothing was on the first one that knows.
const Estimates& Learned(const std::vector<DeviceState>& devices, const DeviceState& device,
                         bool (*knows)(const Estimates&, WeightsId), WeightsId weights) {
  if (knows(device.estimates, weights)) return device.estimates;
  const auto other = std::find_if(devices.begin(), devices.end(),
                                  [&](const DeviceState& each) { return knows(each.estimates, weights); });
  return other == devices.end() ? device.estimates : other->estimates;
}

bool KnowsMoving(const Estimates& estimates, WeightsId) { return estimates.knows_moving(); }
bool KnowsComputing(const Estimates& estimates, WeightsId weights) {
  return estimates.computing_per_byte.contains(weights);
}

}  // namespace

RideOutlook Policy::Outlook(const JoinRequest& request) const {
  const DeviceState& device = state_.device(request.device);
  RideBytes bytes = {request.activation_bytes, 0, request.host_bytes};
  for (const Route& route : request.routes) bytes.widest = std::max(bytes.widest, route.compute_bytes);
  RideOutlook outlook;
  outlook.fits = admission_.CheckFits(request.device, bytes);
  outlook.wait = admission_.PredictedWait(device, bytes);
  const double moved = static_cast<double>(MissingBytes(request) + UnsharedBytes(request));
  outlook.moving =
      absl::Seconds(moved / Learned(state_.devices, device, KnowsMoving, request.weights).bytes_per_second());
  const auto computing = [&](WeightsId weights, int64_t activation_bytes) {
    const Estimates& learned = Learned(state_.devices, device, KnowsComputing, weights);
    const auto per_byte = learned.computing_per_byte.find(weights);
    if (per_byte == learned.computing_per_byte.end()) return absl::ZeroDuration();
    return absl::Seconds(per_byte->second * static_cast<double>(activation_bytes));
  };
  outlook.compute = computing(request.weights, request.activation_bytes);
  for (const PolicyRider& other : sweeps_.riders()) {
    if (other.itinerary->device != request.device) continue;
    outlook.requests += !other.behind;
    if (!other.ended.ok() || other.priority > request.priority) continue;
    const Itinerary& itinerary = *other.itinerary;
    const double left = 1 - static_cast<double>(itinerary.place(other.next)) / std::max(itinerary.modules_taken(), 1);
    const absl::Duration remaining = left * computing(itinerary.weights, other.pass_bytes);
    outlook.compute_others += other.priority == request.priority ? std::min(remaining, outlook.compute) : remaining;
  }
  return outlook;
}

int64_t Policy::MissingBytes(const JoinRequest& request) const {
  const bool in_host_memory = state_.device(request.device).in_host_memory;
  int64_t bytes = 0;
  for (size_t i = 0; i < request.routes.size(); ++i) {
    const auto module = static_cast<ModuleIndex>(i);
    if (!request.routes[i].taken()) continue;
    const std::vector<Copy*>& copies = copies_.Of(request.weights, module);
    const FormId compute = request.routes[i].compute;
    // Within a device's memory values are made of others in next to no time.
    const bool is_there = std::any_of(copies.begin(), copies.end(), [&](const Copy* copy) {
      const CopyKey& key = copy->key;
      const bool is_made_there = key.memory == request.device && state_.leads(key.form, compute);
      const bool is_read_in_place = in_host_memory && IsHost(key.memory) && key.form == compute;
      return !copy->doomed && (is_made_there || is_read_in_place);
    });
    if (!is_there) bytes += stored_bytes(request.weights, module);
  }
  return bytes;
}

int64_t Policy::UnsharedBytes(const JoinRequest& request) const {
  int64_t bytes = 0;
  for (const Itinerary& itinerary : sweeps_.itineraries()) {
    if (itinerary.device != request.device || itinerary.riders == 0) continue;
    ModuleIndex first = itinerary.modules();  // That one of its riders has yet to pass.
    for (const PolicyRider& rider : sweeps_.riders()) {
      if (rider.itinerary == &itinerary && rider.rides()) first = std::min(first, rider.next);
    }
    for (ModuleIndex i = itinerary.computable.NextMissing(first); i < itinerary.modules();
         i = itinerary.computable.NextMissing(i + 1)) {
      const bool shared = itinerary.weights == request.weights &&
                          itinerary.route(i).compute == request.routes[static_cast<size_t>(i)].compute;
      if (!shared) bytes += stored_bytes(itinerary.weights, i);
    }
  }
  return bytes;
}

}  // namespace ditserve
