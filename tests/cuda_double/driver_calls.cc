// The driver's virtual memory calls, and what else the runtime finds by name.
#include <cuda.h>

#include <map>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "tests/cuda_double/runtime.h"

using namespace ditserve::cuda_double;

namespace {

std::byte* Pointer(CUdeviceptr address) { return reinterpret_cast<std::byte*>(address); }

// A call by name that a test may let fail, as the runtime's own; its errors are the driver's, which have the same
// numbers. A driver's call leaves no last error.
CUresult DriverCall(const char* name, absl::FunctionRef<CUresult(Runtime&, MemoryMap&)> act) {
  Runtime& runtime = Runtime::Get();
  cudaError_t error = runtime.Enter(name);
  if (error == cudaSuccess) error = runtime.LostBy(CurrentDevice());
  if (error != cudaSuccess) return static_cast<CUresult>(error);
  const absl::MutexLock lock(&runtime.mutex());
  const CUresult result = act(runtime, runtime.memory());
  if (result == CUDA_ERROR_INVALID_VALUE) runtime.machine().Report(std::string(name) + " of what is not so");
  return result;
}

CUresult DeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  return DriverCall("cuDeviceGetAttribute", [&](Runtime& runtime, MemoryMap&) {
    if (attribute != CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) return CUDA_ERROR_NOT_SUPPORTED;
    *value = runtime.options().virtual_memory ? 1 : 0;
    return CUDA_SUCCESS;
  });
}

CUresult Granularity(size_t* bytes, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
  return DriverCall("cuMemGetAllocationGranularity", [&](Runtime& runtime, MemoryMap&) {
    *bytes = static_cast<size_t>(runtime.options().granule_bytes);
    return CUDA_SUCCESS;
  });
}

CUresult Reserve(CUdeviceptr* begin, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
  return DriverCall("cuMemAddressReserve", [&](Runtime& runtime, MemoryMap& memory) {
    if (bytes % static_cast<size_t>(runtime.options().granule_bytes) != 0) return CUDA_ERROR_INVALID_VALUE;
    std::byte* const reserved = memory.Reserve(static_cast<int64_t>(bytes));
    *begin = reinterpret_cast<CUdeviceptr>(reserved);
    return reserved != nullptr ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
  });
}

CUresult AddressFree(CUdeviceptr begin, size_t bytes) {
  return DriverCall("cuMemAddressFree", [&](Runtime&, MemoryMap& memory) {
    return memory.Unreserve(Pointer(begin), static_cast<int64_t>(bytes)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  });
}

CUresult Create(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* properties,
                unsigned long long) {
  return DriverCall("cuMemCreate", [&](Runtime& runtime, MemoryMap& memory) {
    runtime.mutex().AssertHeld();
    const int device = properties->location.id;
    if (device < 0 || device >= runtime.options().devices) return CUDA_ERROR_INVALID_VALUE;
    if (bytes % static_cast<size_t>(runtime.options().granule_bytes) != 0) return CUDA_ERROR_INVALID_VALUE;
    if (static_cast<int64_t>(bytes) > runtime.FreeBytes(device)) return CUDA_ERROR_OUT_OF_MEMORY;
    *handle = memory.AddHandle(memory.Create(device, static_cast<int64_t>(bytes)));
    return CUDA_SUCCESS;
  });
}

CUresult Release(CUmemGenericAllocationHandle handle) {
  return DriverCall("cuMemRelease", [&](Runtime&, MemoryMap& memory) {
    return memory.RemoveHandle(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  });
}

CUresult Map(CUdeviceptr begin, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long) {
  return DriverCall("cuMemMap", [&](Runtime&, MemoryMap& memory) {
    MemoryMap::PhysicalPtr physical = memory.HandleAt(handle);
    if (physical == nullptr || offset != 0) return CUDA_ERROR_INVALID_VALUE;
    return memory.Map(Pointer(begin), std::move(physical), static_cast<int64_t>(bytes)) ? CUDA_SUCCESS
                                                                                        : CUDA_ERROR_INVALID_VALUE;
  });
}

CUresult Unmap(CUdeviceptr begin, size_t bytes) {
  return DriverCall("cuMemUnmap", [&](Runtime& runtime, MemoryMap& memory) {
    runtime.mutex().AssertHeld();
    if (bytes == 0 || !memory.Unmap(Pointer(begin), static_cast<int64_t>(bytes))) return CUDA_ERROR_INVALID_VALUE;
    runtime.Take(Pointer(begin), static_cast<int64_t>(bytes), "cuMemUnmap");
    return CUDA_SUCCESS;
  });
}

CUresult SetAccess(CUdeviceptr begin, size_t bytes, const CUmemAccessDesc* access, size_t count) {
  return DriverCall("cuMemSetAccess", [&](Runtime&, MemoryMap& memory) {
    for (size_t i = 0; i < count; ++i) {
      const int device = access[i].location.id;
      if (!memory.GiveAccess(Pointer(begin), static_cast<int64_t>(bytes), device)) return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
  });
}

// Another handle of the same memory: CUDA's may be the one that it was created with.
CUresult Retain(CUmemGenericAllocationHandle* handle, void* address) {
  return DriverCall("cuMemRetainAllocationHandle", [&](Runtime&, MemoryMap& memory) {
    MemoryMap::PhysicalPtr mapped = memory.MappedAt(static_cast<const std::byte*>(address));
    if (mapped == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *handle = memory.AddHandle(std::move(mapped));
    return CUDA_SUCCESS;
  });
}

// How kernels that load parts of a matrix by the GPU's own engine are told where it lies; they are not run here.
CUresult EncodeTensorMap() { return CUDA_SUCCESS; }

template <typename Function>
void* Address(Function* function) {
  return reinterpret_cast<void*>(function);
}

}  // namespace

// NOLINTNEXTLINE(readability-inconsistent-declaration-parameter-name): CUDA has names of its own for parameters.
extern "C" cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned, unsigned long long,
                                                        cudaDriverEntryPointQueryResult* result) {
  static const auto* const calls = new std::map<std::string, void*>({
      {"cuDeviceGetAttribute", Address(DeviceGetAttribute)},
      {"cuMemGetAllocationGranularity", Address(Granularity)},
      {"cuMemAddressReserve", Address(Reserve)},
      {"cuMemAddressFree", Address(AddressFree)},
      {"cuMemCreate", Address(Create)},
      {"cuMemRelease", Address(Release)},
      {"cuMemMap", Address(Map)},
      {"cuMemUnmap", Address(Unmap)},
      {"cuMemSetAccess", Address(SetAccess)},
      {"cuMemRetainAllocationHandle", Address(Retain)},
      {"cuTensorMapEncodeTiled", Address(EncodeTensorMap)},
  });
  return Call(__func__, [&](Runtime&) {
    const auto call = calls->find(name);
    *found = call == calls->end() ? nullptr : call->second;
    if (result != nullptr) {
      *result = *found != nullptr ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    }
    return cudaSuccess;
  });
}
