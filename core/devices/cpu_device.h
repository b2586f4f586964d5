#ifndef DITSERVE_CORE_DEVICES_CPU_DEVICE_H_
#define DITSERVE_CORE_DEVICES_CPU_DEVICE_H_

#include <memory>

#include "core/devices/device.h"

namespace ditserve {

// In which dtype the CPU carries out bfloat16 profiles.
enum class CpuBFloat16 : uint8_t {
  kAuto,     // Natively where the processor has bfloat16 dot products, else in float32.
  kNative,   // Always natively.
  kFloat32,  // Always in float32, which is slower but as exact as the weights.
};

// Computes in host memory, which it is given a budget of like any device.
std::unique_ptr<Device> MakeCpuDevice(CpuBFloat16 bfloat16);

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_CPU_DEVICE_H_
