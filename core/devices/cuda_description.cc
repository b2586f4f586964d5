// What the CUDA module tells of driver and devices.
#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "core/devices/device_module.h"

namespace ditserve {
namespace {

std::string VersionText(int version) { return absl::StrCat(version / 1000, ".", version % 1000 / 10); }

// Why there is no device.
std::string Why(cudaError_t error, const CudaDescription& description) {
  if (error == cudaErrorNoDevice) return "the NVIDIA driver shows no device; is CUDA_VISIBLE_DEVICES empty?";
  if (error == cudaErrorInsufficientDriver) {
    if (description.driver_version == 0) return "there is no NVIDIA driver, or a container that was started without it";
    return absl::StrCat("the NVIDIA driver is one of CUDA ", VersionText(description.driver_version), "; CUDA ",
                        VersionText(description.runtime_version), " needs a newer one");
  }
  return absl::StrCat("asking the NVIDIA driver for its devices: ", cudaGetErrorString(error));
}

cudaError_t Describe(CudaDescription& description) {
  cudaError_t error = cudaDriverGetVersion(&description.driver_version);
  // One that is not there has version 0.
  if (error == cudaSuccess && description.driver_version == 0) error = cudaErrorInsufficientDriver;
  if (error == cudaSuccess) error = cudaRuntimeGetVersion(&description.runtime_version);
  int count = 0;
  if (error == cudaSuccess) error = cudaGetDeviceCount(&count);
  for (int i = 0; error == cudaSuccess && i < count; ++i) {
    cudaDeviceProp properties;
    error = cudaGetDeviceProperties(&properties, i);
    if (error != cudaSuccess) break;
    description.devices.push_back({properties.name, 10 * properties.major + properties.minor,
                                   properties.multiProcessorCount, static_cast<int64_t>(properties.totalGlobalMem)});
  }
  return error;
}

}  // namespace
}  // namespace ditserve

extern "C" bool DitserveDescribeCuda(ditserve::CudaDescription* description, std::string* error) {
  const cudaError_t failed = ditserve::Describe(*description);
  if (failed == cudaSuccess) return true;
  cudaGetLastError();  // It would be found by whoever asks next.
  *error = ditserve::Why(failed, *description);
  return false;
}
