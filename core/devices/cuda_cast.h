#ifndef DITSERVE_CORE_DEVICES_CUDA_CAST_H_
#define DITSERVE_CORE_DEVICES_CUDA_CAST_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/base/dtype.h"

namespace ditserve {

// Roundings that a conversion passes on its way; a profile has four stations.
constexpr int kMaxRoundings = 4;

struct Roundings {
  DType dtypes[kMaxRoundings];
  int count = 0;
};

// core/devices/cast.h on the device: enqueues the conversion of `count` elements on `stream`. `source` and `target` are
// device memory, or host memory that is registered with CUDA, which the kernel then reads or writes across the link.
cudaError_t CudaCast(const void* source, DType from, const Roundings& through, void* target, DType to, int64_t count,
                     cudaStream_t stream);

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_CUDA_CAST_H_
