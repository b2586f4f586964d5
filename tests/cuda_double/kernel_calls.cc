// The calls that nvcc's stubs make, and the strings by which tests pull.
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/debugging/symbolize.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "tests/cuda_double/runtime.h"

namespace ditserve::cuda_double {
namespace {

// Kernels by name. Stubs register theirs before main.
class Kernels {
 public:
  static Kernels& Get() {
    static auto* const kernels = new Kernels();
    return *kernels;
  }

  void Name(const void* function, const std::string& name) {
    const absl::MutexLock lock(&mutex_);
    names_[function] = name;
  }
  void Register(const std::string& part_of_name, KernelBody body) {
    const absl::MutexLock lock(&mutex_);
    bodies_[part_of_name] = std::move(body);
  }
  std::string NameOf(const void* function) {
    const absl::MutexLock lock(&mutex_);
    const auto name = names_.find(function);
    return name == names_.end() ? "a function that is no kernel" : name->second;
  }
  // Null: no test has said what it does.
  KernelBody BodyOf(const std::string& name) {
    const absl::MutexLock lock(&mutex_);
    for (const auto& [part, body] : bodies_) {
      if (absl::StrContains(name, part)) return body;
    }
    return nullptr;
  }

 private:
  absl::Mutex mutex_;
  std::map<const void*, std::string> names_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, KernelBody> bodies_ ABSL_GUARDED_BY(mutex_);
};

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};
thread_local std::vector<Configuration> configurations;

cudaError_t LaunchNamed(Runtime& runtime, const void* function, dim3 grid, dim3 block, void** arguments,
                        cudaStream_t stream) {
  const std::string name = Kernels::Get().NameOf(function);
  if (runtime.options().audit) return runtime.Launch(name, grid, block, stream, {});
  const KernelBody body = Kernels::Get().BodyOf(name);
  if (body != nullptr) return runtime.Launch(name, grid, block, stream, body(grid, block, arguments));
  runtime.machine().Report(absl::StrCat("a launch of ", name, ", which has no body here"));
  return cudaErrorInvalidDeviceFunction;
}

}  // namespace

void Begin(const Options& options) { Runtime::Get().Begin(options); }
LateMachine& Machine() { return Runtime::Get().machine(); }
std::vector<std::string> Leaks() { return Runtime::Get().Leaks(); }
int64_t Calls(const std::string& function) { return Runtime::Get().Calls(function); }
std::map<std::string, int64_t> AllCalls() { return Runtime::Get().AllCalls(); }
int64_t HostSynchronizations() { return Runtime::Get().synchronizations(); }
void FailCall(const std::string& function, int64_t n, cudaError_t error) {
  Runtime::Get().FailCall(function, n, error);
}
void SetOthers(int device, int64_t bytes) { Runtime::Get().SetOthers(device, bytes); }
void FailOperation(int64_t n, cudaError_t error) { Runtime::Get().FailOperation(n, error); }

std::vector<Site> Sites() {
  std::vector<Site> sites;
  for (const void* address : Runtime::Get().SiteAddresses()) {
    char caller[512] = "?";
    absl::Symbolize(static_cast<const char*>(address) - 1, caller, sizeof caller);
    sites.push_back({address, absl::StrCat(Runtime::Get().FunctionOf(address), " in ", caller)});
  }
  return sites;
}
void DropSite(const void* address) { Runtime::Get().DropSite(address); }

int64_t BytesRegisteredWithoutPages() { return Runtime::Get().bytes_without_pages(); }
absl::Duration EndsAtOnSharedProcessors() { return Runtime::Get().EndsAtOnSharedProcessors(); }
std::vector<Launch> Launches() { return Runtime::Get().Launches(); }
void RegisterKernel(const std::string& part_of_name, KernelBody body) {
  Kernels::Get().Register(part_of_name, std::move(body));
}
void NameKernel(const void* function, const std::string& name) { Kernels::Get().Name(function, name); }
cudaError_t LaunchWork(const std::string& name, KernelWork work, cudaStream_t stream) {
  const cudaError_t lost = Runtime::Get().LostBy(CurrentDevice());
  return lost != cudaSuccess ? lost : Runtime::Get().Launch(name, {}, {}, stream, std::move(work));
}

}  // namespace ditserve::cuda_double

using namespace ditserve::cuda_double;

// NOLINTBEGIN(bugprone-reserved-identifier,readability-inconsistent-declaration-parameter-name): CUDA has names of its
// own.
extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  NameKernel(function, name);
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
  configurations.push_back({grid, block, shared_bytes, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  const Configuration configuration = configurations.back();
  configurations.pop_back();
  *grid = configuration.grid;
  *block = configuration.block;
  *shared_bytes = configuration.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = configuration.stream;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t,
                             cudaStream_t stream) {
  return Call("cudaLaunchKernel",
              [&](Runtime& runtime) { return LaunchNamed(runtime, function, grid, block, arguments, stream); });
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* launch, const void* function, void** arguments) {
  return cudaLaunchKernel(function, launch->gridDim, launch->blockDim, arguments, launch->dynamicSmemBytes,
                          launch->stream);
}

// Of any kernel: two of its blocks fit.
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  return Call(__func__, [&](Runtime& runtime) {
    *attributes = {};
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->binaryVersion = attributes->ptxVersion = runtime.options().sm;
    return cudaSuccess;
  });
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  return Call(__func__, [&](Runtime&) { return *blocks = 2, cudaSuccess; });
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function, int threads,
                                                                   size_t shared_bytes, unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared_bytes);
}

// A kernel is the function by which its stub knows it.
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                               cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}

}  // extern "C"
// NOLINTEND(bugprone-reserved-identifier,readability-inconsistent-declaration-parameter-name)
