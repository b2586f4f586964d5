// The machine's first GPU. Its driver is asked without CUDA's headers, as only device modules know CUDA.
#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/devices/device_module.h"
#include "tests/gpu/gpu.h"

namespace ditserve {
namespace {

constexpr int kNoDevice = 100;  // CUDA_ERROR_NO_DEVICE.

absl::Status TakeAllBut(int64_t left_bytes, Device& device) {
  DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus memory, device.MemoryStatusOf(Memory::kDevice));
  const int64_t granule = device.granule_bytes(Memory::kDevice);
  const int64_t bytes = (memory.available_bytes - left_bytes) / granule * granule;
  DITSERVE_ASSIGN_OR_RETURN(std::byte* const begin, device.ReserveAddresses(Memory::kDevice, bytes));
  return device.Commit(Memory::kDevice, begin, bytes);
}

// All of a program: LibTorch's CUDA half can't be loaded twice.
absl::StatusOr<std::unique_ptr<Device>> Open() { return LoadCudaDevice(0); }

}  // namespace

absl::StatusOr<std::string> FindGpu() {
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
  if (driver == nullptr) return absl::NotFoundError("there is no driver, libcuda.so.1");
  const auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
  const auto get = reinterpret_cast<int (*)(int*, int)>(dlsym(driver, "cuDeviceGet"));
  const auto name_of = reinterpret_cast<int (*)(char*, int, int)>(dlsym(driver, "cuDeviceGetName"));
  if (init == nullptr || get == nullptr || name_of == nullptr) return absl::InternalError("libcuda.so.1 is no driver");
  int error = init(0), device = 0;
  if (error == kNoDevice) return absl::NotFoundError("the driver knows of no GPU");
  std::array<char, 256> name = {};
  if (error == 0) error = get(&device, 0);
  if (error == 0) error = name_of(name.data(), static_cast<int>(name.size()), device);
  if (error != 0) return absl::InternalError(absl::StrCat("the driver answers with error ", error));
  return std::string(name.data());
}

GpuScope::GpuScope() = default;
GpuScope::~GpuScope() = default;

std::unique_ptr<Device> OpenGpu() { return Open().value(); }

// A process of its own: this program, started as HoldMemory.
struct CoTenant::Holder {
  pid_t process = 0;
  int to = -1;
};

CoTenant::CoTenant(int64_t left_bytes) : holder_(std::make_unique<Holder>()) {
  int to[2], from[2];
  if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0) std::abort();
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, to[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&files, from[1], STDOUT_FILENO);
  std::string program = "/proc/self/exe", hold = absl::StrCat("--hold-all-but=", left_bytes);
  char* arguments[] = {program.data(), hold.data(), nullptr};
  EXPECT_EQ(posix_spawn(&holder_->process, program.c_str(), &files, nullptr, arguments, environ), 0);
  posix_spawn_file_actions_destroy(&files);
  close(to[0]);
  close(from[1]);
  holder_->to = to[1];
  char said = 0;
  EXPECT_EQ(read(from[0], &said, 1), 1) << "the other tenant got no memory";
  close(from[0]);
}

CoTenant::~CoTenant() {
  close(holder_->to);
  int status = 0;
  EXPECT_EQ(waitpid(holder_->process, &status, 0), holder_->process);
  EXPECT_EQ(status, 0);
}

int HoldMemory(int64_t left_bytes) {
  const absl::StatusOr<std::unique_ptr<Device>> device = Open();
  const absl::Status status = device.ok() ? TakeAllBut(left_bytes, **device) : device.status();
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return 1;
  }
  std::putchar('\n');
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  std::_Exit(0);  // The memory goes with the process.
}

void ReachForNoMemory(Device& device) {
  const int64_t bytes = device.granule_bytes(Memory::kDevice);
  const absl::StatusOr<std::byte*> begin = device.ReserveAddresses(Memory::kDevice, 2 * bytes);
  if (!begin.ok() || !device.Commit(Memory::kDevice, *begin, bytes).ok()) std::abort();
  // A kernel, as another dtype is wanted.
  static_cast<void>(device.Enqueue(
      {{Memory::kDevice, *begin + bytes, DType::kBFloat16}, {}, {Memory::kDevice, *begin, DType::kFloat32}, 1}, {}));
}

}  // namespace ditserve
