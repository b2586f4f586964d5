#ifndef DITSERVE_CORE_DEVICES_CUDA_STATUS_H_
#define DITSERVE_CORE_DEVICES_CUDA_STATUS_H_

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace ditserve {

// "what: why". Errors: ResourceExhausted where memory was refused, else Internal.
inline absl::Status CudaStatus(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  // A failed call leaves an error behind that would poison the next launch.
  cudaGetLastError();
  const std::string message = absl::StrCat(what, ": ", cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_CUDA_STATUS_H_
