#include "server/reload.h"

#include <spdlog/spdlog.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/status_macros.h"
#include "server/config/catalogue.h"
#include "server/config/restart_keys.h"

namespace ditserve {

absl::Status Reload(const CommandLine& line, const ServerConfig& running, const Devices& devices, LocalEngine& engine) {
  DITSERVE_ASSIGN_OR_RETURN(const ServerConfig config, LoadConfig(line));
  const absl::StatusOr<ProfileCatalogue> catalogue = MakeCatalogue(config);
  if (!catalogue.ok()) return catalogue.status();
  DITSERVE_ASSIGN_OR_RETURN(const std::vector<int64_t> budgets, Budgets(config, running.follow_pressure, devices));
  for (size_t i = 0; i < budgets.size(); ++i) {
    DITSERVE_RETURN_IF_ERROR(engine.CheckBudget(static_cast<Memory>(i), budgets[i]));
  }
  for (size_t i = 0; i < budgets.size(); ++i) {
    DITSERVE_RETURN_IF_ERROR(engine.SetBudget(static_cast<Memory>(i), budgets[i]));
  }
  spdlog::set_level(spdlog::level::from_str(config.log_level));
  for (const std::string& key : KeysThatNeedARestart(running, config)) {
    spdlog::warn("SIGHUP: {} has changed, and stays as it was until the server is restarted", key);
  }
  spdlog::info("SIGHUP: {}", BudgetsText(budgets, devices));
  return absl::OkStatus();
}

}  // namespace ditserve
