#include "core/devices/device_module.h"

#include <dlfcn.h>

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace ditserve {
namespace {

constexpr char kModule[] = "libditserve_cuda.so";

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> LoadCudaDevice(int index, Memory memory) {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  std::filesystem::path module = program / ".." / "lib" / "ditserve" / kModule;
  if (!std::filesystem::exists(module, error)) module = program / kModule;
  if (!std::filesystem::exists(module, error)) {
    return absl::FailedPreconditionError(
        absl::StrCat("device cuda:", index, ": ", kModule, " is not installed; build with the cuda preset"));
  }
  // It stays loaded: LibTorch's CUDA half registers its operations once.
  void* const handle = dlopen(module.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) return absl::FailedPreconditionError(absl::StrCat(kModule, ": ", dlerror()));
  const auto make = reinterpret_cast<decltype(&DitserveMakeDevice)>(dlsym(handle, "DitserveMakeDevice"));
  if (make == nullptr) return absl::FailedPreconditionError(absl::StrCat(kModule, ": not a device module"));
  std::string why;
  std::unique_ptr<Device> device(make(index, memory, &why));
  if (device == nullptr) return absl::FailedPreconditionError(absl::StrCat("device cuda:", index, ": ", why));
  return device;
}

}  // namespace ditserve
