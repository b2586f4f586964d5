#include "server/devices.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/base/budget_spec.h"
#include "core/base/error_details.h"
#include "core/base/status_macros.h"
#include "core/devices/cpu_device.h"
#include "core/devices/device_module.h"
#include "core/placement/route_maker.h"
#include "core/residency/pressure_guard.h"

namespace ditserve {
namespace {

int64_t DeviceBudget(const ServerConfig& config, bool follow_pressure, const Device& device,
                     const MemoryStatus& memory) {
  const bool follows = follow_pressure && !device.computes_in_host_memory();
  if (config.device_budget.automatic && follows) {
    return memory.total_bytes - PressureGuard::ReserveBytes(device, device.memory(), memory.total_bytes);
  }
  return ResolveBudget(config.device_budget, memory.total_bytes);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> MakeDevice(const ServerConfig& config, const std::string& name, Memory memory) {
  if (name == "cpu") return MakeCpuDevice(config.bfloat16_arithmetic);
  int index = 0;
  if (!absl::SimpleAtoi(absl::StripPrefix(name, "cuda:"), &index)) {
    return absl::InvalidArgumentError(absl::StrCat("device ", name, ": expected cpu or cuda:N"));
  }
  return LoadCudaDevice(index, memory);
}

absl::StatusOr<Devices> MakeDevices(const ServerConfig& config) {
  Devices devices;
  for (const std::string& name : config.devices) {
    DITSERVE_ASSIGN_OR_RETURN(std::unique_ptr<Device> device,
                              MakeDevice(config, name, DeviceMemory(static_cast<int>(devices.size()))));
    devices.push_back(std::move(device));
  }
  return devices;
}

absl::StatusOr<std::vector<int64_t>> Budgets(const ServerConfig& config, bool follow_pressure, const Devices& devices) {
  DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus of_host, devices.front()->MemoryStatusOf(Memory::kHost));
  std::vector<int64_t> budgets = {ResolveBudget(config.host_budget, of_host.total_bytes)};
  for (const std::unique_ptr<Device>& device : devices) {
    DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus of_device, device->MemoryStatusOf(device->memory()));
    budgets.push_back(DeviceBudget(config, follow_pressure, *device, of_device));
  }
  return budgets;
}

std::string BudgetsText(const std::vector<int64_t>& budgets, const Devices& devices) {
  std::string text = absl::StrCat("budgets of ", budgets.front(), " bytes of host memory");
  for (size_t i = 0; i < devices.size(); ++i) absl::StrAppend(&text, ", ", budgets[i + 1], " of ", devices[i]->name());
  return text;
}

absl::Status CheckProfile(const Profile& profile, const Devices& devices) {
  absl::Status status;
  for (const std::unique_ptr<Device>& device : devices) {
    if (!profile.MayUse(device->name())) continue;
    status = CheckComputation(profile, *device);
    if (status.ok()) break;
  }
  return status;
}

absl::Status CheckDefaultProfile(const ProfileCatalogue& catalogue, const Devices& devices) {
  for (const Profile& profile : catalogue.profiles) {
    if (profile.name != catalogue.default_profile) continue;
    const absl::Status status = CheckProfile(profile, devices);
    if (!status.ok()) return WithMessage(status, absl::StrCat("default_profile: ", status.message()));
  }
  return absl::OkStatus();
}

}  // namespace ditserve
