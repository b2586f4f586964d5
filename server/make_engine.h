#ifndef DITSERVE_SERVER_MAKE_ENGINE_H_
#define DITSERVE_SERVER_MAKE_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/clock.h"
#include "server/config/config.h"
#include "server/devices.h"
#include "server/engine/local_engine.h"

namespace ditserve {

// The engine of a configuration, without its models. `budgets`: as Budgets gives them. `devices` and `clock` must
// outlive it. `on_device_lost`: as LocalEngineOptions'. What the configuration says of memory that keeps modulation is
// what each device keeps it in; where it says nothing that is an eighth of the budget, and 448 MiB at most. Errors: as
// LocalEngine::Make.
absl::StatusOr<std::unique_ptr<LocalEngine>> MakeEngine(const ServerConfig& config, const std::vector<int64_t>& budgets,
                                                        const Devices& devices, const Clock* clock,
                                                        std::function<void(const absl::Status&)> on_device_lost);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_MAKE_ENGINE_H_
