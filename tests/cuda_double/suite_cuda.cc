// Residency's tests on the CUDA device, which runs on the double of its runtime.
#include "tests/cuda_double/suite_cuda.h"

#include <c10/cuda/CUDAStream.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "core/base/status_macros.h"
#include "core/devices/device_module.h"
#include "tests/cuda_double/cuda_double.h"
#include "tests/testing/suite_devices.h"

namespace c10::cuda::_internal {  // NOLINT(readability-identifier-naming): LibTorch's.
void setHasPrimaryContext(bool (*has)(c10::DeviceIndex));
}

namespace ditserve {
namespace {

std::atomic<int> devices = 0;

cuda_double::Options OptionsOf(uint32_t seed) {
  cuda_double::Options options;
  options.seed = seed;
  options.granule_bytes = kHostPageBytes;
  return options;
}

// libtorch_cuda, which is not here, says whether a device is in use.
[[maybe_unused]] const bool kHasContext = [] {
  c10::cuda::_internal::setHasPrimaryContext([](c10::DeviceIndex) { return true; });
  return true;
}();

std::unique_ptr<Device> MakeCuda(Memory memory) {
  std::string error;
  std::unique_ptr<Device> device(DitserveMakeDevice(DeviceOf(memory), memory, &error));
  EXPECT_NE(device, nullptr) << error;
  return device;
}

// What of a range lies in one granule.
struct Part {
  std::byte* of_granule;
  std::byte* at;
  int64_t bytes;
};
std::vector<Part> PartsOf(std::byte* begin, int64_t bytes, int64_t granule) {
  std::vector<Part> parts;
  for (std::byte* at = begin; at < begin + bytes; at += parts.back().bytes) {
    const int64_t in_granule = reinterpret_cast<intptr_t>(at) % granule;
    parts.push_back({at - in_granule, at, std::min(begin + bytes - at, granule - in_granule)});
  }
  return parts;
}

}  // namespace

std::unique_ptr<FakeDevice> MakeSuiteDevice(bool in_host_memory) {
  if (in_host_memory) return std::make_unique<FakeDevice>(in_host_memory);
  if (devices == 0) cuda_double::Begin(OptionsOf(/*seed=*/1));
  return std::make_unique<CudaSuiteDevice>(Memory::kDevice);
}

LateDevices::LateDevices(uint32_t seed) : machine_(&cuda_double::Machine(), [](LateMachine*) { /* It stays. */ }) {
  cuda_double::Begin(OptionsOf(seed));
}

std::unique_ptr<FakeDevice> LateDevices::Make(Memory memory) { return std::make_unique<CudaSuiteDevice>(memory); }

CudaSuiteDevice::CudaSuiteDevice(Memory memory)
    : FakeDevice(/*computes_in_host_memory=*/false, memory), cuda_(MakeCuda(memory)) {
  ++devices;
}

CudaSuiteDevice::~CudaSuiteDevice() {
  while (machine()->RunSome()) {
  }
  cuda_.reset();
  if (--devices > 0) return;
  EXPECT_EQ(absl::StrJoin(machine()->TakeRaces(), "\n"), "");
  EXPECT_EQ(absl::StrJoin(cuda_double::Leaks(), "\n"), "");
}

LateMachine* CudaSuiteDevice::machine() { return &cuda_double::Machine(); }

void CudaSuiteDevice::Compute(const std::string& name, const std::vector<ByteRange>& reads, Work work) {
  cuda_double::KernelWork operation;
  for (const auto& [begin, bytes] : reads) operation.accesses.push_back({begin, bytes, false});
  operation.work = [work = std::move(work)](const std::vector<std::byte*>& found) mutable {
    work({found.begin(), found.end()});
  };
  const auto index = static_cast<c10::DeviceIndex>(DeviceOf(memory()));
  EXPECT_TRUE(cuda_->BeginOperations().ok());
  EXPECT_EQ(cuda_double::LaunchWork(name, std::move(operation), c10::cuda::getCurrentCUDAStream(index)), cudaSuccess);
}

// What the host itself converts the double can't see.
absl::StatusOr<EventPtr> CudaSuiteDevice::Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) {
  if (conversion.count > 0) DITSERVE_RETURN_IF_ERROR(CheckLink());
  absl::StatusOr<EventPtr> event = cuda_->Enqueue(conversion, after);
  const auto& [source, through, target, count] = conversion;
  if (count > 0 && IsHost(source.memory) && IsHost(target.memory)) {
    machine()->HostReads(source.data, count * SizeOf(source.dtype), "a conversion on the host");
    machine()->HostWrites(target.data, count * SizeOf(target.dtype), "a conversion on the host");
  }
  return event;
}

int64_t CudaSuiteDevice::RoundUp(Memory memory, int64_t bytes) const {
  return (bytes + Granule(memory) - 1) / Granule(memory) * Granule(memory);
}

absl::StatusOr<std::byte*> CudaSuiteDevice::ReserveAddresses(Memory memory, int64_t bytes) {
  CountRange(1);
  return cuda_->ReserveAddresses(memory, RoundUp(memory, bytes));
}

void CudaSuiteDevice::ReleaseAddresses(Memory memory, std::byte* begin, int64_t bytes) {
  CountRange(-1);
  cuda_->ReleaseAddresses(memory, begin, RoundUp(memory, bytes));
}

absl::Status CudaSuiteDevice::Commit(Memory memory, std::byte* begin, int64_t bytes) {
  DITSERVE_RETURN_IF_ERROR(CheckCommit(memory, bytes));
  Mark(memory, begin, bytes, true);
  return CommitPages(memory, begin, bytes);
}

void CudaSuiteDevice::Decommit(Memory memory, std::byte* begin, int64_t bytes) {
  DecommitPages(memory, begin, bytes);
  Mark(memory, begin, bytes, false);
}

absl::Status CudaSuiteDevice::Move(Memory memory, std::byte* from, std::byte* to, int64_t bytes) {
  absl::Status status = CheckMemory();
  if (status.ok() && Granule(memory) == kHostPageBytes) {
    Mark(memory, from, bytes, false);
    Mark(memory, to, bytes, true);
    return cuda_->Move(memory, from, to, bytes);
  }
  DecommitPages(memory, from, bytes);
  Mark(memory, from, bytes, false);
  if (!status.ok()) return status;
  Mark(memory, to, bytes, true);
  return CommitPages(memory, to, bytes);
}

absl::Status CudaSuiteDevice::CommitPages(Memory memory, std::byte* begin, int64_t bytes) {
  const int64_t granule = Granule(memory);
  if (granule == kHostPageBytes) return cuda_->Commit(memory, begin, bytes);
  const absl::MutexLock lock(&mutex_);
  for (const auto& [of_granule, at, part] : PartsOf(begin, bytes, granule)) {
    int64_t& pages = pages_[of_granule];
    if (pages == 0) DITSERVE_RETURN_IF_ERROR(cuda_->Commit(memory, of_granule, granule));
    pages += part / kHostPageBytes;
  }
  machine()->HostWrites(begin, bytes, "Commit");
  std::memset(begin, cuda_double::kPoison, static_cast<size_t>(bytes));
  return absl::OkStatus();
}

// Of a granule that goes no page is overwritten: nobody can access them any more.
void CudaSuiteDevice::DecommitPages(Memory memory, std::byte* begin, int64_t bytes) {
  const int64_t granule = Granule(memory);
  if (granule == kHostPageBytes) return cuda_->Decommit(memory, begin, bytes);
  const absl::MutexLock lock(&mutex_);
  machine()->HostTakes(begin, bytes, "Decommit");
  for (const auto& [of_granule, at, part] : PartsOf(begin, bytes, granule)) {
    int64_t& pages = pages_[of_granule];
    pages -= part / kHostPageBytes;
    if (pages == 0) {
      cuda_->Decommit(memory, of_granule, granule);
    } else {
      std::memset(at, cuda_double::kPoison, static_cast<size_t>(part));
    }
  }
}

}  // namespace ditserve
