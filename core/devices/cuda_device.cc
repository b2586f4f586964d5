// The CUDA device: a shared module that is loaded only where it is asked for (core/devices/device_module.h).
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/devices/cast.h"
#include "core/devices/cuda_cast.h"
#include "core/devices/device.h"
#include "core/devices/device_module.h"

namespace ditserve {
namespace {

constexpr int64_t kAlignment = 4096;

absl::Status StatusOf(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  // A failed call leaves an error behind that would poison the next launch.
  cudaGetLastError();
  const std::string message = absl::StrCat(what, ": ", cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

class CudaEvent final : public DeviceEvent {
 public:
  explicit CudaEvent(cudaEvent_t event) : event_(event) {}
  ~CudaEvent() override { cudaEventDestroy(event_); }
  absl::Status Wait() override { return StatusOf(cudaEventSynchronize(event_), "waiting for an operation"); }
  absl::Status Record() { return StatusOf(cudaEventRecord(event_, c10::cuda::getCurrentCUDAStream()), "an event"); }

 private:
  const cudaEvent_t event_;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int index) : index_(index), name_(absl::StrCat("cuda:", index)) {}

  const std::string& name() const override { return name_; }
  bool computes_in_host_memory() const override { return false; }
  DType ArithmeticDType(DType computation) const override { return computation; }
  DType OperandDType(DType arithmetic, DType) const override { return arithmetic; }

  absl::StatusOr<std::byte*> Allocate(Memory memory, int64_t bytes) override {
    DITSERVE_RETURN_IF_ERROR(Enter());
    if (memory == Memory::kDevice) {
      void* data = nullptr;
      DITSERVE_RETURN_IF_ERROR(StatusOf(cudaMalloc(&data, bytes), absl::StrCat(bytes, " bytes of device memory")));
      return static_cast<std::byte*>(data);
    }
    // Registered as it is: CUDA's own pinned allocations round up.
    void* const data = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (data == nullptr) return absl::ResourceExhaustedError(absl::StrCat("the system refuses ", bytes, " bytes"));
    const absl::Status pinned = StatusOf(cudaHostRegister(data, bytes, cudaHostRegisterDefault), "pinning host memory");
    if (pinned.ok()) return static_cast<std::byte*>(data);
    std::free(data);
    return pinned;
  }

  void Free(Memory memory, std::byte* data, int64_t) override {
    // Errors here are those of a lost device; its memory is gone with it.
    if (memory == Memory::kDevice) {
      static_cast<void>(StatusOf(cudaFree(data), "freeing device memory"));
      return;
    }
    static_cast<void>(StatusOf(cudaHostUnregister(data), "unpinning host memory"));
    std::free(data);
  }

  absl::Status Convert(const ElementSpan& source, absl::Span<const DType> through, const ElementSpan& target,
                       int64_t count) override {
    if (source.memory == Memory::kHost && target.memory == Memory::kHost) {
      Cast(source.data, source.dtype, through, target.data, target.dtype, count);
      return absl::OkStatus();
    }
    DITSERVE_RETURN_IF_ERROR(Enter());
    // Each transfer thread has a stream of its own, and waits for it: only the thread, not the executor.
    const cudaStream_t stream = cudaStreamPerThread;
    if (source.dtype == target.dtype && through.empty()) {
      DITSERVE_RETURN_IF_ERROR(
          StatusOf(cudaMemcpyAsync(target.data, source.data, count * SizeOf(source.dtype), cudaMemcpyDefault, stream),
                   "copying weights"));
    } else {
      DITSERVE_RETURN_IF_ERROR(ConvertOnDevice(source, through, target, count, stream));
    }
    return StatusOf(cudaStreamSynchronize(stream), "copying weights");
  }

  absl::StatusOr<std::unique_ptr<DeviceEvent>> RecordOperations() override {
    cudaEvent_t raw;
    DITSERVE_RETURN_IF_ERROR(StatusOf(cudaEventCreateWithFlags(&raw, cudaEventDisableTiming), "creating an event"));
    auto event = std::make_unique<CudaEvent>(raw);
    DITSERVE_RETURN_IF_ERROR(event->Record());
    return event;
  }

  absl::StatusOr<MemoryStatus> MemoryStatusOf(Memory memory) const override {
    if (memory == Memory::kHost) return ReadHostMemory();
    DITSERVE_RETURN_IF_ERROR(Enter());
    size_t free = 0, total = 0;
    DITSERVE_RETURN_IF_ERROR(StatusOf(cudaMemGetInfo(&free, &total), "asking for the device's memory"));
    return MemoryStatus{static_cast<int64_t>(total), static_cast<int64_t>(free)};
  }

  absl::Status Enter() const { return StatusOf(cudaSetDevice(index_), name_); }

 private:
  static absl::Status ConvertOnDevice(const ElementSpan& source, absl::Span<const DType> through,
                                      const ElementSpan& target, int64_t count, cudaStream_t stream) {
    if (through.size() > kMaxRoundings) return absl::InternalError("more roundings than a profile has stations");
    Roundings roundings;
    for (const DType dtype : through) roundings.dtypes[roundings.count++] = dtype;
    return StatusOf(CudaCast(source.data, source.dtype, roundings, target.data, target.dtype, count, stream),
                    "converting weights");
  }

  const int index_;
  const std::string name_;
};

}  // namespace
}  // namespace ditserve

extern "C" ditserve::Device* DitserveMakeDevice(int index, std::string* error) {
  auto device = std::make_unique<ditserve::CudaDevice>(index);
  const absl::Status status = device->Enter();
  if (status.ok()) return device.release();
  *error = std::string(status.message());
  return nullptr;
}
