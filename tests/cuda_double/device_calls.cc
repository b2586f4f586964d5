// The runtime's calls of devices, errors and memory. What CUDA documents of each stands in its own header.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/cuda_double/runtime.h"

using namespace ditserve::cuda_double;

namespace {

// Of every device, whatever its SM.
constexpr int kMultiprocessors = 132, kThreadsPerMultiprocessor = 2048, kSharedBytes = 227 << 10;

constexpr uint32_t kEveryDevice = ~0u;

// Whose kernels reach memory that is registered so; by default it is mapped and portable, as with unified addressing.
uint32_t AccessBy(unsigned flags) {
  if (flags == cudaHostRegisterDefault) return kEveryDevice;
  if ((flags & cudaHostRegisterMapped) == 0) return 0;
  return (flags & cudaHostRegisterPortable) != 0 ? kEveryDevice : 1u << CurrentDevice();
}

int64_t BytesWithoutPages(void* data, size_t bytes) {
  constexpr size_t kPageBytes = 4096;
  const size_t before = reinterpret_cast<uintptr_t>(data) % kPageBytes;
  std::vector<unsigned char> pages((before + bytes + kPageBytes - 1) / kPageBytes);
  if (mincore(static_cast<std::byte*>(data) - before, before + bytes, pages.data()) != 0) return 0;
  const auto absent = std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) == 0; });
  return absent * static_cast<int64_t>(kPageBytes);
}

}  // namespace

// NOLINTBEGIN(readability-inconsistent-declaration-parameter-name): CUDA has names of its own for parameters.
extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  return HostCall(__func__, [&](Runtime& runtime) {
    *count = runtime.options().devices;
    return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return HostCall(__func__, [&](Runtime&) { return *device = CurrentDevice(), cudaSuccess; });
}

cudaError_t cudaSetDevice(int device) {
  return HostCall(__func__, [&](Runtime& runtime) {
    if (device < 0 || device >= runtime.options().devices) return cudaErrorInvalidDevice;
    SetCurrentDevice(device);
    runtime.MakeContext(device);
    return runtime.LostBy(device);
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return HostCall(__func__, [&](Runtime& runtime) {
    if (device < 0 || device >= runtime.options().devices) return cudaErrorInvalidDevice;
    *properties = {};
    std::snprintf(properties->name, sizeof properties->name, "Double %d", device);
    properties->uuid = UuidOf(device);
    properties->totalGlobalMem = static_cast<size_t>(runtime.options().device_bytes);
    properties->major = runtime.options().sm / 10;
    properties->minor = runtime.options().sm % 10;
    properties->multiProcessorCount = kMultiprocessors;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = std::numeric_limits<int>::max();
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->maxThreadsPerMultiProcessor = kThreadsPerMultiprocessor;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = kSharedBytes;
    properties->sharedMemPerMultiprocessor = kSharedBytes + (1 << 10);
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->unifiedAddressing = properties->canMapHostMemory = 1;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return HostCall(__func__, [&](Runtime& runtime) {
    if (device < 0 || device >= runtime.options().devices) return cudaErrorInvalidDevice;
    switch (attribute) {
      case cudaDevAttrComputeCapabilityMajor:
        return *value = runtime.options().sm / 10, cudaSuccess;
      case cudaDevAttrComputeCapabilityMinor:
        return *value = runtime.options().sm % 10, cudaSuccess;
      case cudaDevAttrMultiProcessorCount:
        return *value = kMultiprocessors, cudaSuccess;
      case cudaDevAttrMaxThreadsPerMultiProcessor:
        return *value = kThreadsPerMultiprocessor, cudaSuccess;
      case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        return *value = kSharedBytes, cudaSuccess;
      default:
        return cudaErrorNotSupported;
    }
  });
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return Call(__func__, [&](Runtime&) { return *least = 0, *greatest = -5, cudaSuccess; });
}

cudaError_t cudaDriverGetVersion(int* version) {
  return HostCall(__func__, [&](Runtime&) { return *version = CUDART_VERSION, cudaSuccess; });
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  return HostCall(__func__, [&](Runtime&) { return *version = CUDART_VERSION, cudaSuccess; });
}

cudaError_t cudaGetLastError() { return LastError(/*clear=*/true); }
cudaError_t cudaPeekAtLastError() { return LastError(/*clear=*/false); }
const char* cudaGetErrorName(cudaError_t) { return "cudaError"; }
const char* cudaGetErrorString(cudaError_t error) {
  thread_local char text[32];
  std::snprintf(text, sizeof text, "error %d", static_cast<int>(error));
  return text;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return Call(__func__, [&](Runtime& runtime) {
    const absl::MutexLock lock(&runtime.mutex());
    *free = static_cast<size_t>(runtime.FreeBytes(CurrentDevice()));
    *total = static_cast<size_t>(runtime.options().device_bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  return Call(__func__, [&](Runtime& runtime) {
    const absl::MutexLock lock(&runtime.mutex());
    *data = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (static_cast<int64_t>(bytes) <= runtime.FreeBytes(CurrentDevice())) {
      *data = runtime.memory().Allocate(CurrentDevice(), static_cast<int64_t>(bytes));
    }
    return *data != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
  });
}

cudaError_t cudaFree(void* data) {
  return Call(__func__, [&](Runtime& runtime) {
    if (data == nullptr) return cudaSuccess;
    const absl::MutexLock lock(&runtime.mutex());
    const int64_t bytes = runtime.memory().Free(static_cast<std::byte*>(data));
    if (bytes >= 0) return runtime.Take(data, bytes, "cudaFree"), cudaSuccess;
    runtime.machine().Report("cudaFree: nothing was allocated there, or it was freed before");
    return cudaErrorInvalidValue;
  });
}

cudaError_t cudaHostRegister(void* data, size_t bytes, unsigned flags) {
  return Call(__func__, [&](Runtime& runtime) {
    const absl::MutexLock lock(&runtime.mutex());
    if (data == nullptr || bytes == 0) return cudaErrorInvalidValue;
    runtime.AddBytesWithoutPages(BytesWithoutPages(data, bytes));
    const bool done =
        runtime.memory().Register(static_cast<std::byte*>(data), static_cast<int64_t>(bytes), AccessBy(flags));
    return done ? cudaSuccess : cudaErrorHostMemoryAlreadyRegistered;
  });
}

cudaError_t cudaHostUnregister(void* data) {
  return Call(__func__, [&](Runtime& runtime) {
    const absl::MutexLock lock(&runtime.mutex());
    const int64_t bytes = runtime.memory().Unregister(static_cast<std::byte*>(data));
    if (bytes >= 0) return runtime.Take(data, bytes, "cudaHostUnregister"), cudaSuccess;
    runtime.machine().Report("cudaHostUnregister: nothing was registered there");
    return cudaErrorHostMemoryNotRegistered;
  });
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned /*flags*/) {
  return Call(__func__, [&](Runtime& runtime) {
    *data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*data == MAP_FAILED) return cudaErrorMemoryAllocation;
    std::memset(*data, kPoison, bytes);
    const absl::MutexLock lock(&runtime.mutex());
    runtime.memory().Register(static_cast<std::byte*>(*data), static_cast<int64_t>(bytes), kEveryDevice);
    return cudaSuccess;
  });
}

cudaError_t cudaMallocHost(void** data, size_t bytes) { return cudaHostAlloc(data, bytes, cudaHostAllocDefault); }

cudaError_t cudaFreeHost(void* data) {
  return Call(__func__, [&](Runtime& runtime) {
    if (data == nullptr) return cudaSuccess;
    const absl::MutexLock lock(&runtime.mutex());
    const int64_t bytes = runtime.memory().Unregister(static_cast<std::byte*>(data));
    if (bytes < 0) {
      runtime.machine().Report("cudaFreeHost: nothing was allocated there, or it was freed before");
      return cudaErrorInvalidValue;
    }
    runtime.Take(data, bytes, "cudaFreeHost");
    munmap(data, static_cast<size_t>(bytes));
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* data) {
  return Call(__func__, [&](Runtime& runtime) {
    const absl::MutexLock lock(&runtime.mutex());
    const MemoryMap::Place place = runtime.memory().Locate(data, 1);
    *attributes = {};
    attributes->device = std::max(place.device, 0);
    switch (place.kind) {
      case MemoryMap::Kind::kDevice:
        attributes->type = cudaMemoryTypeDevice;
        break;
      case MemoryMap::Kind::kPinned:
        attributes->type = cudaMemoryTypeHost;
        break;
      default:
        attributes->type = cudaMemoryTypeUnregistered;
    }
    if (attributes->type == cudaMemoryTypeDevice) attributes->devicePointer = const_cast<void*>(data);
    if (place.kind == MemoryMap::Kind::kPinned) {
      attributes->hostPointer = const_cast<void*>(data);
      attributes->devicePointer = runtime.DevicePointerOf(data, place);
    }
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return HostCall(__func__, [&](Runtime& runtime) {
    const int count = runtime.options().devices;
    if (device < 0 || device >= count || peer < 0 || peer >= count) return cudaErrorInvalidDevice;
    *can = device != peer ? 1 : 0;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned /*flags*/) {
  return Call(__func__, [&](Runtime& runtime) {
    if (peer < 0 || peer >= runtime.options().devices || peer == CurrentDevice()) return cudaErrorInvalidDevice;
    return runtime.AllowPeer(CurrentDevice(), peer);
  });
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

// What libc10_cuda is linked with and nobody here asks for.
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t*, int) { return Remember(cudaErrorNotSupported); }
cudaError_t cudaMallocAsync(void**, size_t, cudaStream_t) { return Remember(cudaErrorNotSupported); }
cudaError_t cudaFreeAsync(void*, cudaStream_t) { return Remember(cudaErrorNotSupported); }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return Remember(cudaErrorNotSupported); }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return Remember(cudaErrorNotSupported); }
cudaError_t cudaMemPoolSetAccess(cudaMemPool_t, const cudaMemAccessDesc*, size_t) {
  return Remember(cudaErrorNotSupported);
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return Remember(cudaErrorNotSupported); }
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t*, void*) { return Remember(cudaErrorNotSupported); }
cudaError_t cudaIpcOpenMemHandle(void**, cudaIpcMemHandle_t, unsigned) { return Remember(cudaErrorNotSupported); }
cudaError_t cudaIpcCloseMemHandle(void*) { return Remember(cudaErrorNotSupported); }
cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t, cudaGraphNode_t*, cudaGraphEdgeData*, size_t*) {
  return Remember(cudaErrorNotSupported);
}

}  // extern "C"
// NOLINTEND(readability-inconsistent-declaration-parameter-name)
