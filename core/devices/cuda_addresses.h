#ifndef DITSERVE_CORE_DEVICES_CUDA_ADDRESSES_H_
#define DITSERVE_CORE_DEVICES_CUDA_ADDRESSES_H_

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/devices/cuda_faults.h"

namespace ditserve {

// Address ranges of one device's memory, by CUDA's virtual memory management. The driver's calls are asked of the
// runtime, so that nothing links the driver. Each granule is an allocation of its own, as CUDA takes memory back only
// as it was given; of any number that lie side by side in one call.
//
// Thread safety: thread-safe. The caller has set the device.
class CudaAddresses {
 public:
  // `faults` must outlive it. Errors: FailedPrecondition if the device has no virtual memory management.
  static absl::StatusOr<std::unique_ptr<CudaAddresses>> Make(int device, CudaFaults* faults);

  int64_t granule_bytes() const { return granule_bytes_; }

  // As Device's.
  absl::StatusOr<std::byte*> Reserve(int64_t bytes) const;
  void Release(std::byte* begin, int64_t bytes) const;
  absl::Status Commit(std::byte* begin, int64_t bytes) const;
  void Decommit(std::byte* begin, int64_t bytes) const;
  absl::Status Move(std::byte* from, std::byte* to, int64_t bytes) const;

 private:
  struct Driver {
    decltype(&cuDeviceGetAttribute) attribute = nullptr;
    decltype(&cuMemGetAllocationGranularity) granularity = nullptr;
    decltype(&cuMemAddressReserve) reserve = nullptr;
    decltype(&cuMemAddressFree) release = nullptr;
    decltype(&cuMemCreate) create = nullptr;
    decltype(&cuMemRelease) drop = nullptr;
    decltype(&cuMemMap) map = nullptr;
    decltype(&cuMemUnmap) unmap = nullptr;
    decltype(&cuMemSetAccess) set_access = nullptr;
    decltype(&cuMemRetainAllocationHandle) retain = nullptr;
  };

  explicit CudaAddresses(CudaFaults* faults) : faults_(*faults) {}
  // Of the driver's errors, which have the runtime's numbers.
  absl::Status StatusOf(CUresult result, absl::string_view what) const {
    return faults_.StatusOf(static_cast<cudaError_t>(result), what);
  }
  absl::Status CommitGranule(std::byte* begin) const;
  absl::Status Map(std::byte* begin, CUmemGenericAllocationHandle granule) const;
  // Ends what was mapped granule by granule: gives access to it, or after an error unmaps the `mapped` bytes.
  absl::Status Finish(std::byte* begin, int64_t bytes, int64_t mapped, absl::Status status) const;

  CudaFaults& faults_;
  Driver driver_;
  CUmemAllocationProp properties_ = {};
  int64_t granule_bytes_ = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_CUDA_ADDRESSES_H_
