#ifndef DITSERVE_CORE_DEVICES_DEVICE_MODULE_H_
#define DITSERVE_CORE_DEVICES_DEVICE_MODULE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/devices/device.h"

// What a device module exports. Null, and why in `error`, if the device is not there.
extern "C" ditserve::Device* DitserveMakeDevice(int index, ditserve::Memory memory, std::string* error);

namespace ditserve {

// Loads libditserve_cuda.so, which stands in lib/ditserve beside the program's folder (or in the program's own), and
// makes the device `index` of it, whose own memory is `memory`. A CPU server never loads it: CUDA's libraries alone
// cost 350 MB. Errors: FailedPrecondition if the module or the device is not there.
absl::StatusOr<std::unique_ptr<Device>> LoadCudaDevice(int index, Memory memory = Memory::kDevice);

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_DEVICE_MODULE_H_
