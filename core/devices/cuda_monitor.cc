#include "core/devices/cuda_monitor.h"

#include <dlfcn.h>

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace ditserve {
namespace {

// NVML, which comes with the driver. What is declared of it here is the part that is the same in each of its versions.
class Nvml {
 public:
  using Device = struct nvmlDevice_st*;
  struct Memory {
    unsigned long long total, free, used;  // NOLINT(google-runtime-int): its own type.
  };

  Nvml() : library_(dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)), begun_(Call("nvmlInit_v2")) {}
  ~Nvml() {
    if (begun_) Call("nvmlShutdown");
    if (library_ != nullptr) dlclose(library_);
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  // Whether there is the function, and it succeeds.
  template <typename... Arguments>
  bool Call(const char* name, Arguments... arguments) const {
    void* const function = library_ == nullptr ? nullptr : dlsym(library_, name);
    return function != nullptr && reinterpret_cast<int (*)(Arguments...)>(function)(arguments...) == 0;
  }

 private:
  void* const library_;
  const bool begun_;
};

// As NVML has them: 8-4-4-4-12 digits.
std::string UuidText(const cudaUUID_t& uuid) {
  std::string digits = absl::BytesToHexString(absl::string_view(uuid.bytes, sizeof uuid.bytes));
  for (const size_t dash : {8, 13, 18, 23}) digits.insert(dash, 1, '-');
  return digits;
}

}  // namespace

std::optional<int64_t> CudaBytesInUse(const cudaUUID_t& device) {
  const std::string uuid = UuidText(device);
  const Nvml nvml;
  // A slice of a card has a name, and memory, of its own.
  for (const char* const kind : {"GPU-", "MIG-"}) {
    Nvml::Device found = nullptr;
    Nvml::Memory memory = {};
    if (nvml.Call("nvmlDeviceGetHandleByUUID", absl::StrCat(kind, uuid).c_str(), &found) &&
        nvml.Call("nvmlDeviceGetMemoryInfo", found, &memory)) {
      return static_cast<int64_t>(memory.used);
    }
  }
  return std::nullopt;
}

}  // namespace ditserve
