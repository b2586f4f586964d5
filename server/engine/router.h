#ifndef DITSERVE_SERVER_ENGINE_ROUTER_H_
#define DITSERVE_SERVER_ENGINE_ROUTER_H_

#include <cstddef>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "core/residency/outlook.h"

namespace ditserve {

// When a request is predicted to end there, from now on. Weights move beside computing; riders of one model share what
// is moved, and nobody shares the processor.
absl::Duration PredictedEnd(const RideOutlook& outlook);

// Where a request ends first, by its place among `outlooks`, of which there is at least one. Predictions are not
// exact: of those near the first, the device with the fewest requests, then the first of these. Where it can never fit
// anywhere, the device that is short of the least. Pure.
size_t ChooseDevice(absl::Span<const RideOutlook> outlooks);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_ROUTER_H_
