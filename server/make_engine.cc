#include "server/make_engine.h"

#include <algorithm>
#include <utility>

namespace ditserve {
namespace {

// Of a device's budget the most that keeps modulation: one part in so many.
constexpr int64_t kModulationPart = 32;

}  // namespace

absl::StatusOr<std::unique_ptr<LocalEngine>> MakeEngine(const ServerConfig& config, const std::vector<int64_t>& budgets,
                                                        const Devices& devices, const Clock* clock,
                                                        std::function<void(const absl::Status&)> on_device_lost) {
  LocalEngineOptions options;
  options.on_device_lost = std::move(on_device_lost);
  options.host_budget_bytes = budgets.front();
  std::vector<BudgetedDevice> budgeted;
  for (size_t i = 0; i < devices.size(); ++i) {
    const int64_t modulation_bytes = std::min(config.modulation_bytes, budgets[i + 1] / kModulationPart);
    budgeted.push_back({devices[i].get(), budgets[i + 1], modulation_bytes});
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
