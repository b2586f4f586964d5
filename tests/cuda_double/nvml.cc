// What the CUDA device asks NVML, of the double's devices.
#include <atomic>
#include <cstdio>
#include <cstring>

#include "tests/cuda_double/runtime.h"

using namespace ditserve::cuda_double;

// NOLINTBEGIN(google-runtime-int, readability-identifier-naming, readability-inconsistent-declaration-parameter-name)
extern "C" {

struct nvmlDevice_st {
  int index;
};
struct nvmlMemory_t {
  unsigned long long total, free, used;
};

static std::atomic<int> begun = 0;  // nvmlInit_v2, less nvmlShutdown.

int nvmlInit_v2() {
  constexpr int kDriverNotLoaded = 9;
  if (!Runtime::Get().options().monitor) return kDriverNotLoaded;
  ++begun;
  return 0;
}

int nvmlShutdown() {
  --begun;
  return 0;
}

int nvmlDeviceGetHandleByUUID(const char* uuid, nvmlDevice_st** found) {
  constexpr int kNotFound = 6, kUninitialized = 1;
  if (begun == 0) return kUninitialized;
  static nvmlDevice_st devices[Runtime::kMostDevices];
  const Options& options = Runtime::Get().options();
  for (int i = 0; i < options.devices; ++i) {
    const cudaUUID_t of = UuidOf(i);
    char name[64];
    int size = std::snprintf(name, sizeof name, options.slices ? "MIG-" : "GPU-");
    for (size_t byte = 0; byte < sizeof of.bytes; ++byte) {
      const bool dash = byte == 4 || byte == 6 || byte == 8 || byte == 10;
      size += std::snprintf(name + size, sizeof name - static_cast<size_t>(size), dash ? "-%02x" : "%02x",
                            static_cast<unsigned char>(of.bytes[byte]));
    }
    if (std::strcmp(name, uuid) != 0) continue;
    devices[i].index = i;
    *found = &devices[i];
    return 0;
  }
  return kNotFound;
}

int nvmlDeviceGetMemoryInfo(nvmlDevice_st* device, nvmlMemory_t* memory) {
  Runtime& runtime = Runtime::Get();
  const absl::MutexLock lock(&runtime.mutex());
  memory->total = static_cast<unsigned long long>(runtime.options().device_bytes);
  memory->free = static_cast<unsigned long long>(runtime.FreeBytes(device->index));
  memory->used = memory->total - memory->free;
  return 0;
}

}  // extern "C"
// NOLINTEND(google-runtime-int, readability-identifier-naming, readability-inconsistent-declaration-parameter-name)
