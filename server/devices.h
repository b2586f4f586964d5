#ifndef DITSERVE_SERVER_DEVICES_H_
#define DITSERVE_SERVER_DEVICES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/memory.h"
#include "core/devices/device.h"
#include "core/placement/profile.h"
#include "server/config/config.h"
#include "server/engine/profile_catalogue.h"

namespace ditserve {

// What a server computes on, in the order of its configuration: the memory of the i-th is DeviceMemory(i).
using Devices = std::vector<std::unique_ptr<Device>>;

// `name`: "cpu" or "cuda:N". Errors: InvalidArgument for any other; as LoadCudaDevice.
absl::StatusOr<std::unique_ptr<Device>> MakeDevice(const ServerConfig& config, const std::string& name, Memory memory);

// Those that are configured. Errors: as MakeDevice.
absl::StatusOr<Devices> MakeDevices(const ServerConfig& config);

// In bytes, by Index(Memory): the host's, then each device's. `follow_pressure`: whether the server does. Errors: those
// of the devices.
absl::StatusOr<std::vector<int64_t>> Budgets(const ServerConfig& config, bool follow_pressure, const Devices& devices);

// "budgets of 5 bytes of host memory, 6 of cuda:0, 7 of cuda:1".
std::string BudgetsText(const std::vector<int64_t>& budgets, const Devices& devices);

// Why none of the devices can compute it.
absl::Status CheckProfile(const Profile& profile, const Devices& devices);

// A profile that no device can compute is refused where it is asked for; the default one, which nobody names, here.
absl::Status CheckDefaultProfile(const ProfileCatalogue& catalogue, const Devices& devices);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_DEVICES_H_
