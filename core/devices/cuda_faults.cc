#include "core/devices/cuda_faults.h"

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

// Those of which CUDA 13's driver_types.h says that the process must be terminated, and what can't get better either:
// memory or a link that is broken; a device, its context or the MPS server between that is gone.
bool IsFatal(cudaError_t error) {
  switch (error) {
    case cudaErrorDevicesUnavailable:
    case cudaErrorNoDevice:
    case cudaErrorDeviceUninitialized:
    case cudaErrorContextIsDestroyed:
    case cudaErrorMpsConnectionFailed:
    case cudaErrorMpsRpcFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
      return true;
    case cudaErrorUnknown: {
      size_t free = 0, total = 0;
      const bool stays = cudaMemGetInfo(&free, &total) != cudaSuccess;  // Or it was an error of one call.
      cudaGetLastError();
      return stays;
    }
    default:
      return false;
  }
}

}  // namespace

absl::Status CudaFaults::Enter() {
  DITSERVE_RETURN_IF_ERROR(Loss());
  const cudaError_t error = cudaSetDevice(device_);
  return error == cudaSuccess ? absl::OkStatus() : StatusOf(error, "entering the device");
}

absl::Status CudaFaults::StatusOf(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  // A failed call leaves an error behind that would poison the next launch.
  cudaGetLastError();
  const std::string message = absl::StrCat(what, ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  return IsFatal(error) ? Lose(message) : absl::InternalError(message);
}

absl::Status CudaFaults::WaitBy(absl::FunctionRef<cudaError_t()> wait, absl::string_view what) {
  absl::Status status = StatusOf(wait(), what);
  if (!status.ok() && Loss().ok()) status = StatusOf(wait(), what);
  return status.ok() || !Loss().ok() ? status : Lose(status.message());
}

absl::Status CudaFaults::Lose(absl::string_view why) {
  const absl::MutexLock lock(&mutex_);
  if (loss_.ok()) loss_ = absl::UnavailableError(absl::StrCat("cuda:", device_, " is lost: ", why));
  lost_ = true;
  return loss_;
}

absl::Status CudaFaults::Loss() const {
  if (!lost_) return absl::OkStatus();
  const absl::MutexLock lock(&mutex_);
  return loss_;
}

}  // namespace ditserve
