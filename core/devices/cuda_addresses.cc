#include "core/devices/cuda_addresses.h"

#include <cuda_runtime_api.h>

#include <utility>
#include <vector>

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
  DITSERVE_RETURN_IF_ERROR(Find("cuDeviceGetAttribute", *faults, driver.attribute));
  int has = 0;
  DITSERVE_RETURN_IF_ERROR(addresses->StatusOf(
      driver.attribute(&has, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device), "asking for features"));
  if (has == 0) {
    return absl::FailedPreconditionError(
        "the GPU, or its virtual part here, has no virtual memory management (cuMemMap)");
  }
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

// All of it is taken from where it was before any of it is where it is to be: taking is one call then, and each may
// wait for the device.
absl::Status CudaAddresses::Move(std::byte* from, std::byte* to, int64_t bytes) const {
  absl::Status status;
  std::vector<CUmemGenericAllocationHandle> handles;
  for (int64_t at = 0; status.ok() && at < bytes; at += granule_bytes_) {
    CUmemGenericAllocationHandle handle;
    status = StatusOf(driver_.retain(&handle, from + at), "asking for mapped device memory");
    if (status.ok()) handles.push_back(handle);
  }
  Decommit(from, bytes);
  int64_t mapped = 0;
  for (const CUmemGenericAllocationHandle handle : handles) {
    if (status.ok()) status = Map(to + mapped, handle);
    if (status.ok()) mapped += granule_bytes_;
    driver_.drop(handle);
  }
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
  absl::Status mapped = Map(begin, handle);
  driver_.drop(handle);  // What is mapped stays until it is unmapped.
  return mapped;
}

absl::Status CudaAddresses::Map(std::byte* begin, CUmemGenericAllocationHandle granule) const {
  return StatusOf(driver_.map(Address(begin), static_cast<size_t>(granule_bytes_), 0, granule, 0),
                  "mapping device memory");
}

void CudaAddresses::Decommit(std::byte* begin, int64_t bytes) const {
  if (bytes > 0) driver_.unmap(Address(begin), static_cast<size_t>(bytes));
}

}  // namespace ditserve
