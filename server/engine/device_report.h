#ifndef DITSERVE_SERVER_ENGINE_DEVICE_REPORT_H_
#define DITSERVE_SERVER_ENGINE_DEVICE_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/clock.h"
#include "core/devices/device.h"
#include "core/devices/device_module.h"
#include "core/placement/profile.h"
#include "server/engine/model_source.h"

namespace ditserve {

// What a server would be on a device.
struct DeviceReportOptions {
  std::vector<ModelSource> models;  // None: Qwen-Image as it is published.
  std::vector<Profile> profiles;
  std::vector<int64_t> budgets;         // In bytes, by Index(Memory): the host's, the device's.
  std::vector<int64_t> taken;           // Of them, by a server before the first request.
  int threads = 0;                      // That compute; 0: ComputingThreads.
  std::optional<CudaDescription> cuda;  // Of a CUDA device.
};

// Tells, in lines for people, what the device is, and what a pass of each model would take on it under each profile:
// decided by the policy that serves, as in plans. Copies to a device with a memory of its own are measured, by 64 MiB
// of both memories; what computing takes follows from published speeds and says so, or is not told.
// Errors: as OpenModel; those of the device.
absl::StatusOr<std::string> ReportDevice(Device& device, const DeviceReportOptions& options, const Clock& clock);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_DEVICE_REPORT_H_
