#include "server/make_engine.h"

#include <algorithm>
#include <utility>

namespace ditserve {
namespace {

// Unless the configuration says how much: one part in so many of a device's budget, as activations and the window need
// the rest of a small one, and no more than the rows of a schedule of 50 steps take of the 20 B model in float32, 443
// MB.
constexpr int64_t kModulationPart = 8;
constexpr int64_t kMostModulationBytes = int64_t{448} << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<LocalEngine>> MakeEngine(const ServerConfig& config, const std::vector<int64_t>& budgets,
                                                        const Devices& devices, const Clock* clock,
                                                        std::function<void(const absl::Status&)> on_device_lost) {
  LocalEngineOptions options;
  options.on_device_lost = std::move(on_device_lost);
  options.host_budget_bytes = budgets.front();
  std::vector<BudgetedDevice> budgeted;
  for (size_t i = 0; i < devices.size(); ++i) {
    const int64_t part = std::min(kMostModulationBytes, budgets[i + 1] / kModulationPart);
    budgeted.push_back({devices[i].get(), budgets[i + 1], config.modulation_bytes.value_or(part)});
  }
  for (const ModelSource& source : config.models) options.models.push_back(source.name);
  options.threads = config.threads;
  options.transfer_threads = config.transfer_threads;
  options.follow_pressure = config.follow_pressure;
  options.residency.max_riders = config.max_active;
  options.residency.max_waiting = config.max_queue;
  options.residency.idle_release = config.idle_release;
  return LocalEngine::Make(options, budgeted, clock);
}

}  // namespace ditserve
