#include "core/devices/device_module.h"

#include <dlfcn.h>

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

constexpr char kModule[] = "libditserve_cuda.so";

// A function that the module exports.
template <typename Function>
absl::StatusOr<Function*> FindInModule(const char* name) {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  std::filesystem::path module = program / ".." / "lib" / "ditserve" / kModule;
  if (!std::filesystem::exists(module, error)) module = program / kModule;
  if (!std::filesystem::exists(module, error)) {
    return absl::FailedPreconditionError(absl::StrCat(kModule, " is not installed; build with the cuda preset"));
  }
  // It stays loaded: LibTorch's CUDA half registers its operations once.
  void* const handle = dlopen(module.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) return absl::FailedPreconditionError(absl::StrCat(kModule, ": ", dlerror()));
  auto* const function = reinterpret_cast<Function*>(dlsym(handle, name));
  if (function == nullptr) return absl::FailedPreconditionError(absl::StrCat(kModule, ": not a device module"));
  return function;
}

absl::Status WithDevice(int index, absl::string_view why) {
  return absl::FailedPreconditionError(absl::StrCat("device cuda:", index, ": ", why));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> LoadCudaDevice(int index, Memory memory) {
  const auto make = FindInModule<decltype(DitserveMakeDevice)>("DitserveMakeDevice");
  if (!make.ok()) return WithDevice(index, make.status().message());
  std::string why;
  std::unique_ptr<Device> device((*make)(index, memory, &why));
  if (device == nullptr) return WithDevice(index, why);
  return device;
}

absl::StatusOr<CudaDescription> DescribeCuda() {
  DITSERVE_ASSIGN_OR_RETURN(const auto describe, FindInModule<decltype(DitserveDescribeCuda)>("DitserveDescribeCuda"));
  CudaDescription description;
  std::string why;
  if (!describe(&description, &why)) return absl::FailedPreconditionError(why);
  return description;
}

}  // namespace ditserve
