// The CUDA device: a shared module that is loaded only where it is asked for (core/devices/device_module.h).
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/devices/cast.h"
#include "core/devices/cuda_addresses.h"
#include "core/devices/cuda_cast.h"
#include "core/devices/cuda_faults.h"
#include "core/devices/cuda_host_memory.h"
#include "core/devices/device.h"
#include "core/devices/device_module.h"
#include "core/devices/host_addresses.h"

namespace ditserve {
namespace {

class CudaEvent final : public Event {
 public:
  CudaEvent(cudaEvent_t event, std::shared_ptr<CudaFaults> faults) : event_(event), faults_(std::move(faults)) {}
  ~CudaEvent() override { static_cast<void>(faults_->StatusOf(cudaEventDestroy(event_), "giving an event back")); }

  bool Done() override {
    if (!faults_->Loss().ok()) return true;
    const cudaError_t error = cudaEventQuery(event_);
    if (error == cudaErrorNotReady) cudaGetLastError();  // It would be found by whoever asks next.
    if (error == cudaSuccess || error == cudaErrorNotReady) return error == cudaSuccess;
    // A question that fails has no answer: it is asked again, as long as the device is there.
    static_cast<void>(faults_->StatusOf(error, kWaiting));
    return !faults_->Loss().ok();
  }
  absl::Status Wait() override {
    return faults_->WaitBy([this] { return cudaEventSynchronize(event_); }, kWaiting);
  }

  cudaEvent_t get() const { return event_; }

 private:
  static constexpr char kWaiting[] = "waiting for the device";

  const cudaEvent_t event_;
  const std::shared_ptr<CudaFaults> faults_;
};

class CudaDevice final : public Device {
 public:
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Make(int index, Memory memory) {
    auto faults = std::make_shared<CudaFaults>(absl::StrCat("cuda:", index));
    CudaDescription there;
    std::string why;
    if (!DitserveDescribeCuda(&there, &why)) return absl::FailedPreconditionError(why);
    DITSERVE_RETURN_IF_ERROR(faults->StatusOf(cudaSetDevice(index), absl::StrCat("cuda:", index)));
    auto device = std::unique_ptr<CudaDevice>(new CudaDevice(index, memory, std::move(faults)));
    DITSERVE_RETURN_IF_ERROR(device->CreateStreams());
    DITSERVE_ASSIGN_OR_RETURN(device->addresses_, CudaAddresses::Make(index, device->faults_.get()));
    return device;
  }
  ~CudaDevice() override {
    if (!Enter().ok()) return;
    for (const cudaStream_t stream : {copies_, computing_}) {
      if (stream != nullptr) static_cast<void>(StatusOf(cudaStreamDestroy(stream), "giving a stream back"));
    }
  }

  const std::string& name() const override { return name_; }
  Memory memory() const override { return memory_; }
  bool computes_in_host_memory() const override { return false; }
  DType ArithmeticDType(DType computation) const override { return computation; }
  DType OperandDType(DType arithmetic, DType) const override { return arithmetic; }

  absl::StatusOr<EventPtr> Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) override {
    const auto& [source, through, target, count] = conversion;
    if (count > 0 && IsHost(source.memory) && IsHost(target.memory)) {
      DITSERVE_RETURN_IF_ERROR(WaitForAll(after));
      Cast(source.data, source.dtype, through, target.data, target.dtype, count);
      return nullptr;
    }
    DITSERVE_RETURN_IF_ERROR(Enter());
    return RecordedOr(EnqueueAfter(conversion, after), copies_);
  }

  absl::Status ComputeAfter(const EventPtr& event) override {
    if (event == nullptr) return absl::OkStatus();
    DITSERVE_RETURN_IF_ERROR(Enter());
    return OrderAfter(event, computing_);
  }

  absl::Status BeginOperations() override {
    DITSERVE_RETURN_IF_ERROR(Enter());
    c10::cuda::setCurrentCUDAStream(
        c10::cuda::getStreamFromExternal(computing_, static_cast<c10::DeviceIndex>(index_)));
    return absl::OkStatus();
  }

  // By a kernel that reaches the host's memory itself: the engine for copies takes them one by one as they come.
  absl::Status Operate(const Conversion& conversion) override {
    DITSERVE_RETURN_IF_ERROR(Enter());
    return EnqueueCast(conversion, computing_);
  }

  absl::StatusOr<EventPtr> RecordOperations() override { return RecordedOr(Enter(), computing_); }

  absl::StatusOr<std::byte*> ReserveAddresses(Memory memory, int64_t bytes) override {
    return IsHost(memory) ? ReserveHostAddresses(bytes) : addresses_->Reserve(bytes);
  }
  void ReleaseAddresses(Memory memory, std::byte* begin, int64_t bytes) override {
    IsHost(memory) ? ReleaseHostAddresses(begin, bytes) : addresses_->Release(begin, bytes);
  }
  absl::Status Commit(Memory memory, std::byte* begin, int64_t bytes) override {
    DITSERVE_RETURN_IF_ERROR(Enter());
    return IsHost(memory) ? host_memory_.Commit(begin, bytes) : addresses_->Commit(begin, bytes);
  }
  void Decommit(Memory memory, std::byte* begin, int64_t bytes) override {
    // Errors here are those of a lost device; its memory is gone with it.
    static_cast<void>(Enter());
    IsHost(memory) ? host_memory_.Decommit(begin, bytes) : addresses_->Decommit(begin, bytes);
  }
  absl::Status Move(Memory memory, std::byte* from, std::byte* to, int64_t bytes) override {
    DITSERVE_RETURN_IF_ERROR(Enter());
    return IsHost(memory) ? host_memory_.Move(from, to, bytes) : addresses_->Move(from, to, bytes);
  }
  int64_t granule_bytes(Memory memory) const override {
    return IsHost(memory) ? CudaHostMemory::kRangeBytes : addresses_->granule_bytes();
  }
  int64_t unpinned_bytes() const override { return host_memory_.unpinned_bytes(); }

  absl::StatusOr<MemoryStatus> MemoryStatusOf(Memory memory) const override {
    if (IsHost(memory)) return ReadHostMemory();
    DITSERVE_RETURN_IF_ERROR(Enter());
    size_t free = 0, total = 0;
    DITSERVE_RETURN_IF_ERROR(StatusOf(cudaMemGetInfo(&free, &total), "asking for the device's memory"));
    return MemoryStatus{static_cast<int64_t>(total), static_cast<int64_t>(free)};
  }

  // Whatever has gone wrong shows in any call; this one waits for nothing.
  absl::Status Health() override {
    DITSERVE_RETURN_IF_ERROR(faults_->Loss());
    const cudaError_t error = cudaStreamQuery(computing_);
    if (error == cudaErrorNotReady) cudaGetLastError();  // It would be found by whoever asks next.
    if (error != cudaErrorNotReady) static_cast<void>(StatusOf(error, "looking at the device"));
    return faults_->Loss();
  }

 private:
  CudaDevice(int index, Memory memory, std::shared_ptr<CudaFaults> faults)
      : index_(index), memory_(memory), name_(absl::StrCat("cuda:", index)), faults_(std::move(faults)) {}

  // Non-blocking, as LibTorch's streams are: the legacy stream, should anything use it, would wait for any other kind
  // and be waited for. What is computed is what is waited for, and goes before copies.
  absl::Status CreateStreams() {
    int least = 0, greatest = 0;
    DITSERVE_RETURN_IF_ERROR(StatusOf(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for priorities"));
    DITSERVE_RETURN_IF_ERROR(
        StatusOf(cudaStreamCreateWithPriority(&copies_, cudaStreamNonBlocking, least), "creating a stream for copies"));
    return StatusOf(cudaStreamCreateWithPriority(&computing_, cudaStreamNonBlocking, greatest),
                    "creating a stream for operations");
  }

  // The calling thread's calls are this device's.
  absl::Status Enter() const {
    DITSERVE_RETURN_IF_ERROR(faults_->Loss());
    return StatusOf(cudaSetDevice(index_), name_);
  }

  absl::Status StatusOf(cudaError_t error, absl::string_view what) const { return faults_->StatusOf(error, what); }

  absl::Status OrderAfter(const EventPtr& event, cudaStream_t stream) const {
    if (event == nullptr) return absl::OkStatus();
    return StatusOf(cudaStreamWaitEvent(stream, static_cast<CudaEvent&>(*event).get(), cudaEventWaitDefault),
                    "ordering after an event");
  }

  absl::StatusOr<EventPtr> Record(cudaStream_t stream) const {
    cudaEvent_t raw;
    DITSERVE_RETURN_IF_ERROR(StatusOf(cudaEventCreateWithFlags(&raw, cudaEventDisableTiming), "creating an event"));
    auto event = std::make_shared<CudaEvent>(raw, faults_);
    DITSERVE_RETURN_IF_ERROR(StatusOf(cudaEventRecord(raw, stream), "recording an event"));
    return event;
  }

  // An event of what the stream has, or why there is none: then nothing is under way there, for nobody could wait for
  // it.
  absl::StatusOr<EventPtr> RecordedOr(absl::Status status, cudaStream_t stream) const {
    absl::StatusOr<EventPtr> event = status.ok() ? Record(stream) : std::move(status);
    if (!event.ok()) {
      static_cast<void>(faults_->WaitBy([stream] { return cudaStreamSynchronize(stream); }, "waiting for the device"));
    }
    return event;
  }

  absl::Status EnqueueAfter(const Conversion& conversion, absl::Span<const EventPtr> after) const {
    for (const EventPtr& event : after) DITSERVE_RETURN_IF_ERROR(OrderAfter(event, copies_));
    return conversion.count > 0 ? EnqueueElements(conversion) : absl::OkStatus();
  }

  absl::Status EnqueueElements(const Conversion& conversion) const {
    const auto& [source, through, target, count] = conversion;
    if (source.dtype == target.dtype && through.empty()) {
      return EnqueueCopy(source.data, target.data, count * SizeOf(source.dtype));
    }
    return EnqueueCast(conversion, copies_);
  }

  absl::Status EnqueueCast(const Conversion& conversion, cudaStream_t stream) const {
    const auto& [source, through, target, count] = conversion;
    if (through.size() > kMaxRoundings) return absl::InternalError("more roundings than a profile has stations");
    DITSERVE_ASSIGN_OR_RETURN(const bool reaches, KernelsReach(IsHost(source.memory) ? source : target, count));
    if (!reaches) return CastOnHost(conversion, stream);
    Roundings roundings;
    for (const DType dtype : through) roundings.dtypes[roundings.count++] = dtype;
    return StatusOf(CudaCast(source.data, source.dtype, roundings, target.data, target.dtype, count, stream),
                    "converting");
  }

  // Whether kernels can access all of it: host memory that could not be registered they can't.
  absl::StatusOr<bool> KernelsReach(const ElementSpan& span, int64_t count) const {
    const std::byte* const end = span.data + count * SizeOf(span.dtype);
    for (const std::byte* at = span.data; IsHost(span.memory) && at < end; at += PinnedBytesFrom(at)) {
      cudaPointerAttributes attributes;
      DITSERVE_RETURN_IF_ERROR(StatusOf(cudaPointerGetAttributes(&attributes, at), "asking for host memory"));
      if (attributes.type == cudaMemoryTypeUnregistered) return false;
    }
    return true;
  }

  // The conversion by the host, in parts that the driver stages. Waits for the stream: it may write what is read here.
  absl::Status CastOnHost(const Conversion& conversion, cudaStream_t stream) const {
    constexpr int64_t kPart = 1 << 18;  // Elements.
    const auto& [source, through, target, count] = conversion;
    const bool to_host = IsHost(target.memory);
    const DType copied = to_host ? source.dtype : target.dtype;
    std::vector<std::byte> staged(static_cast<size_t>(std::min(count, kPart) * SizeOf(copied)));
    DITSERVE_RETURN_IF_ERROR(
        faults_->WaitBy([stream] { return cudaStreamSynchronize(stream); }, "waiting for the device"));
    for (int64_t at = 0; at < count; at += kPart) {
      const int64_t part = std::min(count - at, kPart);
      std::byte* const from = source.data + at * SizeOf(source.dtype);
      std::byte* const to = target.data + at * SizeOf(target.dtype);
      if (!to_host) Cast(from, source.dtype, through, staged.data(), copied, part);
      DITSERVE_RETURN_IF_ERROR(
          StatusOf(cudaMemcpyAsync(to_host ? staged.data() : to, to_host ? from : staged.data(),
                                   static_cast<size_t>(part * SizeOf(copied)), cudaMemcpyDefault, stream),
                   "copying what the host converts"));
      if (to_host) Cast(staged.data(), copied, through, to, target.dtype, part);
    }
    return absl::OkStatus();
  }

  // In parts that lie in one pinned range each: a copy across two may be refused.
  absl::Status EnqueueCopy(const std::byte* source, std::byte* target, int64_t bytes) const {
    while (bytes > 0) {
      const int64_t part = std::min({bytes, PinnedBytesFrom(source), PinnedBytesFrom(target)});
      DITSERVE_RETURN_IF_ERROR(
          StatusOf(cudaMemcpyAsync(target, source, part, cudaMemcpyDefault, copies_), "copying weights"));
      source += part;
      target += part;
      bytes -= part;
    }
    return absl::OkStatus();
  }
  static int64_t PinnedBytesFrom(const std::byte* data) {
    constexpr int64_t kBytes = CudaHostMemory::kRangeBytes;
    return kBytes - static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) % kBytes);
  }

  const int index_;
  const Memory memory_;
  const std::string name_;
  cudaStream_t copies_ = nullptr;
  cudaStream_t computing_ = nullptr;
  const std::shared_ptr<CudaFaults> faults_;  // Of its events too.
  CudaHostMemory host_memory_{faults_.get()};
  std::unique_ptr<CudaAddresses> addresses_;
};

}  // namespace
}  // namespace ditserve

extern "C" ditserve::Device* DitserveMakeDevice(int index, ditserve::Memory memory, std::string* error) {
  absl::StatusOr<std::unique_ptr<ditserve::CudaDevice>> device = ditserve::CudaDevice::Make(index, memory);
  if (device.ok()) return device->release();
  *error = std::string(device.status().message());
  return nullptr;
}
