#include "core/devices/cuda_addresses.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

// The version in which the newest of these calls was as it is used here.
constexpr unsigned kDriverVersion = 11000;

template <typename Function>
absl::Status Find(const char* name, CudaFaults& faults, Function& function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  DITSERVE_RETURN_IF_ERROR(faults.StatusOf(
      cudaGetDriverEntryPointByVersion(name, &found, kDriverVersion, cudaEnableDefault, &result), name));
  if (result != cudaDriverEntryPointSuccess || found == nullptr) {
    return absl::InternalError(absl::StrCat(name, ": not in this CUDA driver"));
  }
  function = reinterpret_cast<Function>(found);
  return absl::OkStatus();
}

CUdeviceptr Address(const std::byte* data) { return reinterpret_cast<CUdeviceptr>(data); }

}  // namespace

absl::StatusOr<std::unique_ptr<CudaAddresses>> CudaAddresses::Make(int device, CudaFaults* faults) {
  auto addresses = std::unique_ptr<CudaAddresses>(new CudaAddresses(faults));
  Driver& driver = addresses->driver_;
  DITSERVE_RETURN_IF_ERROR(Find("cuMemGetAllocationGranularity", *faults, driver.granularity));
  DITSERVE_RETURN_IF_ERROR(Find("cuMemAddressReserve", *faults, driver.reserve));
  DITSERVE_RETURN_IF_ERROR(Find("cuMemAddressFree", *faults, driver.release));
  DITSERVE_RETURN_IF_ERROR(Find("cuMemCreate", *faults, driver.create));
  DITSERVE_RETURN_IF_ERROR(Find("cuMemRelease", *faults, driver.drop));
  DITSERVE_RETURN_IF_ERROR(Find("cuMemMap", *faults, driver.map));
  DITSERVE_RETURN_IF_ERROR(Find("cuMemUnmap", *faults, driver.unmap));
  DITSERVE_RETURN_IF_ERROR(Find("cuMemSetAccess", *faults, driver.set_access));
  DITSERVE_RETURN_IF_ERROR(Find("cuMemRetainAllocationHandle", *faults, driver.retain));
  addresses->properties_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  addresses->properties_.location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
  size_t granule = 0;
  DITSERVE_RETURN_IF_ERROR(addresses->StatusOf(
      driver.granularity(&granule, &addresses->properties_, CU_MEM_ALLOC_GRANULARITY_MINIMUM), "the granule"));
  addresses->granule_bytes_ = static_cast<int64_t>(granule);
  return addresses;
}

absl::StatusOr<std::byte*> CudaAddresses::Reserve(int64_t bytes) const {
  CUdeviceptr begin = 0;
  DITSERVE_RETURN_IF_ERROR(StatusOf(driver_.reserve(&begin, static_cast<size_t>(bytes), 0, 0, 0),
                                    absl::StrCat("reserving ", bytes, " bytes of device addresses")));
  return reinterpret_cast<std::byte*>(begin);
}

void CudaAddresses::Release(std::byte* begin, int64_t bytes) const {
  driver_.release(Address(begin), static_cast<size_t>(bytes));
}

absl::Status CudaAddresses::Commit(std::byte* begin, int64_t bytes) const {
  absl::Status status;
  int64_t mapped = 0;
  for (; status.ok() && mapped < bytes; mapped += status.ok() ? granule_bytes_ : 0) {
    status = CommitGranule(begin + mapped);
  }
  return Finish(begin, bytes, mapped, std::move(status));
}

absl::Status CudaAddresses::Move(std::byte* from, std::byte* to, int64_t bytes) const {
  absl::Status status;
  int64_t mapped = 0;
  for (; status.ok() && mapped < bytes; mapped += status.ok() ? granule_bytes_ : 0) {
    status = MoveGranule(from + mapped, to + mapped);
  }
  if (!status.ok()) Decommit(from + mapped + granule_bytes_, bytes - mapped - granule_bytes_);
  return Finish(to, bytes, mapped, std::move(status));
}

absl::Status CudaAddresses::Finish(std::byte* begin, int64_t bytes, int64_t mapped, absl::Status status) const {
  if (status.ok()) {
    CUmemAccessDesc access = {properties_.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    status = StatusOf(driver_.set_access(Address(begin), static_cast<size_t>(bytes), &access, 1),
                      absl::StrCat("access to ", bytes, " bytes of device memory"));
  }
  if (!status.ok()) Decommit(begin, mapped);
  return status;
}

absl::Status CudaAddresses::CommitGranule(std::byte* begin) const {
  const auto size = static_cast<size_t>(granule_bytes_);
  CUmemGenericAllocationHandle handle;
  DITSERVE_RETURN_IF_ERROR(
      StatusOf(driver_.create(&handle, size, &properties_, 0), absl::StrCat(size, " bytes of device memory")));
  absl::Status mapped = StatusOf(driver_.map(Address(begin), size, 0, handle, 0), "mapping device memory");
  driver_.drop(handle);  // What is mapped stays until it is unmapped.
  return mapped;
}

// Takes the granule from where it was, whether or not it then is where it is to be.
absl::Status CudaAddresses::MoveGranule(std::byte* from, std::byte* to) const {
  const auto size = static_cast<size_t>(granule_bytes_);
  CUmemGenericAllocationHandle handle;
  absl::Status moved = StatusOf(driver_.retain(&handle, from), "asking for mapped device memory");
  driver_.unmap(Address(from), size);
  if (!moved.ok()) return moved;
  moved = StatusOf(driver_.map(Address(to), size, 0, handle, 0), "mapping device memory");
  driver_.drop(handle);
  return moved;
}

void CudaAddresses::Decommit(std::byte* begin, int64_t bytes) const {
  for (int64_t at = 0; at < bytes; at += granule_bytes_) {
    driver_.unmap(Address(begin + at), static_cast<size_t>(granule_bytes_));
  }
}

}  // namespace ditserve
