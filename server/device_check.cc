#include "server/device_check.h"

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/base/clock.h"
#include "core/base/error_details.h"
#include "core/base/status_macros.h"
#include "core/devices/device_module.h"
#include "server/devices.h"
#include "server/engine/device_report.h"
#include "server/engine/local_engine.h"
#include "server/make_engine.h"

namespace ditserve {
namespace {

// What a server has taken of each memory before the first request, by Index(Memory).
absl::StatusOr<std::vector<int64_t>> TakenAtStart(const ServerConfig& config, const std::vector<int64_t>& budgets,
                                                  const Devices& devices, const Clock& clock,
                                                  const std::function<void(const absl::Status&)>& on_device_lost) {
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<LocalEngine> engine,
                            MakeEngine(config, budgets, devices, &clock, on_device_lost));
  const ResidencySnapshot now = engine->Residency();
  std::vector<int64_t> taken;
  for (size_t i = 0; i < budgets.size(); ++i) {
    taken.push_back(now.memory(static_cast<Memory>(i)).usage.total_bytes());
  }
  return taken;
}

}  // namespace

absl::StatusOr<std::string> CheckDevice(const ServerConfig& config, const ProfileCatalogue& catalogue,
                                        const std::string& name,
                                        const std::function<void(const absl::Status&)>& on_device_lost) {
  DeviceReportOptions options;
  if (name != "cpu") {
    absl::StatusOr<CudaDescription> cuda = DescribeCuda();
    if (!cuda.ok()) return WithMessage(cuda.status(), absl::StrCat("device ", name, ": ", cuda.status().message()));
    options.cuda = *std::move(cuda);
  }
  const SteadyClock clock;
  Devices devices(1);
  DITSERVE_ASSIGN_OR_RETURN(devices.front(), MakeDevice(config, name, Memory::kDevice));
  DITSERVE_RETURN_IF_ERROR(CheckDefaultProfile(catalogue, devices));
  DITSERVE_ASSIGN_OR_RETURN(options.budgets, Budgets(config, config.follow_pressure, devices));
  DITSERVE_ASSIGN_OR_RETURN(options.taken, TakenAtStart(config, options.budgets, devices, clock, on_device_lost));
  options.models = config.models;
  options.profiles = catalogue.profiles;
  options.threads = config.threads;
  return ReportDevice(*devices.front(), options, clock);
}

}  // namespace ditserve
