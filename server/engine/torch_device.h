#ifndef DITSERVE_SERVER_ENGINE_TORCH_DEVICE_H_
#define DITSERVE_SERVER_ENGINE_TORCH_DEVICE_H_

#include <c10/core/Device.h>

#include "core/devices/device.h"

namespace ditserve {

// LibTorch's name for it. Data in host memory is of no numbered device.
inline at::Device TorchDevice(const Device& device) {
  const at::Device named(device.name());
  return named.is_cpu() ? at::Device(at::kCPU) : named;
}

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_TORCH_DEVICE_H_
