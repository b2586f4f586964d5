#ifndef DITSERVE_CORE_DEVICES_DEVICE_MODULE_H_
#define DITSERVE_CORE_DEVICES_DEVICE_MODULE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/devices/device.h"

namespace ditserve {

// A GPU as its driver describes it.
struct GpuDescription {
  std::string model;   // "NVIDIA H200".
  int capability = 0;  // Its compute capability times ten: 90.
  int multiprocessors = 0;
  int64_t memory_bytes = 0;  // Of all of it.
};

// What CUDA there is. Versions are 1000 times the major one and 10 times the minor one: 13000.
struct CudaDescription {
  int driver_version = 0;   // The newest that the driver knows.
  int runtime_version = 0;  // That the module uses.
  std::vector<GpuDescription> devices;
};

}  // namespace ditserve

// What a device module exports. Null, and why in `error`, if the device is not there.
extern "C" ditserve::Device* DitserveMakeDevice(int index, ditserve::Memory memory, std::string* error);
// False, and why in `error`, if there is no driver or no device. Nothing is taken of any device.
extern "C" bool DitserveDescribeCuda(ditserve::CudaDescription* description, std::string* error);

namespace ditserve {

// Loads libditserve_cuda.so, which stands in lib/ditserve beside the program's folder (or in the program's own), and
// makes the device `index` of it, whose own memory is `memory`. A CPU server never loads it: CUDA's libraries alone
// cost 350 MB. Errors: FailedPrecondition if the module or the device is not there.
absl::StatusOr<std::unique_ptr<Device>> LoadCudaDevice(int index, Memory memory = Memory::kDevice);

// What that module tells of driver and devices. Errors: FailedPrecondition, and why, if the module is not there, or
// there is no driver or no device.
absl::StatusOr<CudaDescription> DescribeCuda();

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_DEVICE_MODULE_H_
