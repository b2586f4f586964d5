#ifndef DITSERVE_CORE_DEVICES_CUDA_MONITOR_H_
#define DITSERVE_CORE_DEVICES_CUDA_MONITOR_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <optional>

namespace ditserve {

// Bytes of a device's memory that are in use, by whatever process, as NVML (NVIDIA's library for monitoring) tells
// them. It can be asked where there is no context yet; cudaMemGetInfo makes one. Nullopt where NVML is not there, or
// does not tell: of memory that device and host share it does not.
std::optional<int64_t> CudaBytesInUse(const cudaUUID_t& device);

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_CUDA_MONITOR_H_
