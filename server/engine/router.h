#ifndef DITSERVE_SERVER_ENGINE_ROUTER_H_
#define DITSERVE_SERVER_ENGINE_ROUTER_H_

#include <cstddef>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "core/placement/profile.h"
#include "core/residency/policy/outlook.h"
#include "core/residency/rider.h"
#include "models/qwen_image_dit.h"
#include "server/engine/engine_device.h"
#include "server/engine/served_model.h"

namespace ditserve {

// When a request is predicted to end there, from now on. Weights move beside computing; riders of one model share what
// is moved, and nobody shares the processor.
absl::Duration PredictedEnd(const RideOutlook& outlook);

// Where a request ends first, by its place among `outlooks`, of which there is at least one. Predictions are not
// exact: of those near the first, the device with the fewest requests, then the first of these. Where it can never fit
// anywhere, the device that is short of the least. Pure.
size_t ChooseDevice(absl::Span<const RideOutlook> outlooks);

// What a request that takes `beside_bytes` of host memory beside its passes takes of a device's memory and the host's.
// Errors: as ServedModel::ActivationBytes.
absl::StatusOr<RideOptions> WayTo(const Device& device, ServedModel& model, const ForwardShape& shape,
                                  const Profile& profile, int64_t beside_bytes);

// A way for each device that the profile may be computed on and that can compute it; if none can, for each that may:
// who asks is told why not. Errors: InvalidArgument if no device has the profile's name; as
// ServedModel::ActivationBytes.
absl::StatusOr<std::vector<RideOptions>> WaysFor(absl::Span<const EngineDevice> devices, ServedModel& model,
                                                 const ForwardShape& shape, const Profile& profile,
                                                 int64_t beside_bytes = 0);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_ROUTER_H_
