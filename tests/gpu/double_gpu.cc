// The double in the place of a GPU.
#include <gtest/gtest.h>

#include <cstdlib>
#include <stdexcept>

#include "absl/strings/str_join.h"
#include "core/devices/device_module.h"
#include "tests/cuda_double/cublas.h"
#include "tests/cuda_double/cuda_double.h"
#include "tests/cuda_double/told_device.h"
#include "tests/gpu/gpu.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {

absl::StatusOr<std::string> FindGpu() { return "the double of the CUDA runtime"; }

// What is taken beside the budget, and cuBLAS' workspace, are as large as a real card's may be.
GpuScope::GpuScope() {
  cuda_double::Options options;
  options.device_bytes = int64_t{4} << 30;
  options.context_bytes = 500 << 20;
  options.module_bytes = 150 << 20;
  cuda_double::Begin(options);
  cuda_double::SetCublasWorkspaceBytes(32 << 20);
}

GpuScope::~GpuScope() {
  while (cuda_double::Machine().RunSome()) {
  }
  for (const std::string& race : cuda_double::Machine().TakeRaces()) ADD_FAILURE() << race;
  EXPECT_EQ(absl::StrJoin(cuda_double::Leaks(), "\n"), "");
}

std::unique_ptr<Device> OpenGpu() {
  std::string error;
  std::unique_ptr<Device> device(DitserveMakeDevice(0, Memory::kDevice, &error));
  if (device == nullptr) throw std::runtime_error(error);
  return std::make_unique<ToldDevice>(std::move(device));
}

// In this process, as the double's memory is its own.
struct CoTenant::Holder {
  std::unique_ptr<Device> device = OpenGpu();
  int64_t bytes = 0;
  std::byte* begin = nullptr;
};

CoTenant::CoTenant(int64_t left_bytes) : holder_(std::make_unique<Holder>()) {
  const int64_t granule = holder_->device->granule_bytes(Memory::kDevice);
  const int64_t available = holder_->device->MemoryStatusOf(Memory::kDevice)->available_bytes;
  holder_->bytes = (available - left_bytes) / granule * granule;
  holder_->begin = holder_->device->ReserveAddresses(Memory::kDevice, holder_->bytes).value();
  EXPECT_THAT(holder_->device->Commit(Memory::kDevice, holder_->begin, holder_->bytes), IsOk());
}

CoTenant::~CoTenant() {
  holder_->device->Decommit(Memory::kDevice, holder_->begin, holder_->bytes);
  holder_->device->ReleaseAddresses(Memory::kDevice, holder_->begin, holder_->bytes);
}

int HoldMemory(int64_t) { return EXIT_FAILURE; }

void ReachForNoMemory(Device&) { cuda_double::FailOperation(1, cudaErrorIllegalAddress); }

}  // namespace ditserve
