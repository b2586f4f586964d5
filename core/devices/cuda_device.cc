// The CUDA device: a shared module that is loaded only where it is asked for (core/devices/device_module.h).
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <deque>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "core/base/status_macros.h"
#include "core/devices/cast.h"
#include "core/devices/cuda_addresses.h"
#include "core/devices/cuda_cast.h"
#include "core/devices/cuda_faults.h"
#include "core/devices/cuda_host_memory.h"
#include "core/devices/cuda_monitor.h"
#include "core/devices/cuda_tensors.h"
#include "core/devices/device.h"
#include "core/devices/device_module.h"
#include "core/devices/host_addresses.h"

namespace ditserve {
namespace {

class CudaEvent final : public Event {
 public:
  CudaEvent(cudaEvent_t event, std::shared_ptr<CudaFaults> faults) : event_(event), faults_(std::move(faults)) {}
  ~CudaEvent() override {
    static_cast<void>(faults_->Enter());
    static_cast<void>(faults_->StatusOf(cudaEventDestroy(event_), "giving an event back"));
  }

  bool Done() override {
    if (!faults_->Enter().ok()) return !faults_->Loss().ok();
    const cudaError_t error = cudaEventQuery(event_);
    if (error == cudaErrorNotReady) cudaGetLastError();  // It would be found by whoever asks next.
    if (error == cudaSuccess || error == cudaErrorNotReady) return error == cudaSuccess;
    // A question that fails has no answer: it is asked again, as long as the device is there.
    static_cast<void>(faults_->StatusOf(error, kWaiting));
    return !faults_->Loss().ok();
  }
  absl::Status Wait() override {
    static_cast<void>(faults_->Enter());
    return faults_->WaitBy([this] { return cudaEventSynchronize(event_); }, kWaiting);
  }
  absl::StatusOr<absl::Duration> TimeSince(const Event& earlier) override {
    float milliseconds = 0;
    DITSERVE_RETURN_IF_ERROR(faults_->Enter());
    DITSERVE_RETURN_IF_ERROR(
        faults_->StatusOf(cudaEventElapsedTime(&milliseconds, static_cast<const CudaEvent&>(earlier).event_, event_),
                          "asking for a time"));
    return absl::Milliseconds(double{milliseconds});
  }

  cudaEvent_t get() const { return event_; }

 private:
  static constexpr char kWaiting[] = "waiting for the device";

  const cudaEvent_t event_;
  const std::shared_ptr<CudaFaults> faults_;
};

absl::Status CheckIndex(int index, const std::vector<GpuDescription>& there) {
  if (index >= 0 && static_cast<size_t>(index) < there.size()) return absl::OkStatus();
  std::vector<std::string> names;
  for (const GpuDescription& gpu : there) names.push_back(absl::StrCat("cuda:", names.size(), " (", gpu.model, ")"));
  return absl::FailedPreconditionError(absl::StrCat("there are ", absl::StrJoin(names, ", ")));
}

class CudaDevice final : public Device {
 public:
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Make(int index, Memory memory) {
    auto faults = std::make_shared<CudaFaults>(index);
    CudaDescription there;
    std::string why;
    if (!DitserveDescribeCuda(&there, &why)) return absl::FailedPreconditionError(why);
    DITSERVE_RETURN_IF_ERROR(CheckIndex(index, there.devices));
    cudaDeviceProp properties;
    DITSERVE_RETURN_IF_ERROR(
        faults->StatusOf(cudaGetDeviceProperties(&properties, index), "asking for the device's properties"));
    const std::optional<int64_t> in_use = CudaBytesInUse(properties.uuid);  // Before there is a context.
    DITSERVE_RETURN_IF_ERROR(faults->Enter());
    const int capability = 10 * properties.major + properties.minor;
    auto device = std::unique_ptr<CudaDevice>(new CudaDevice(index, capability, memory, std::move(faults)));
    InstallCudaTensors();
    DITSERVE_RETURN_IF_ERROR(device->CreateStreams());
    if (const std::optional<int64_t> now = CudaBytesInUse(properties.uuid); in_use && now) {
      device->runtime_bytes_ = std::max<int64_t>(*now - *in_use, 0);  // (Others may have given some back meanwhile.)
    }
    DITSERVE_ASSIGN_OR_RETURN(device->addresses_, CudaAddresses::Make(index, device->faults_.get()));
    DITSERVE_RETURN_IF_ERROR(device->CommitStaging());
    return device;
  }
  ~CudaDevice() override {
    if (!Enter().ok()) return;
    // Whoever had something converted has waited for it: nothing uses the slots.
    if (staging_ != nullptr) {
      addresses_->Decommit(staging_, kStagingBytes);
      addresses_->Release(staging_, kStagingBytes);
    }
    for (const cudaStream_t stream : {copies_, casts_, computing_}) {
      if (stream != nullptr) static_cast<void>(StatusOf(cudaStreamDestroy(stream), "giving a stream back"));
    }
  }

  const std::string& name() const override { return name_; }
  Memory memory() const override { return memory_; }
  int64_t staging_bytes() const override { return kStagingBytes; }
  int64_t runtime_bytes() const override { return runtime_bytes_; }
  bool computes_in_host_memory() const override { return false; }
  absl::Status CanCompute(DType computation) const override {
    int least = 0;
    if (computation == DType::kBFloat16) least = kBFloat16Capability;
    if (computation == DType::kFloat8E4M3) least = kFloat8Capability;
    if (capability_ >= least) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrFormat("computing in %s takes compute capability %d.%d, %s has %d.%d",
                                                         Name(computation), least / 10, least % 10, name_,
                                                         capability_ / 10, capability_ % 10));
  }
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
    const bool needs_copy = count > 0 && (IsHost(source.memory) || IsCopy(conversion));
    if (!needs_copy) return OrIdle(EnqueueCast(conversion, after), {casts_});
    return OrIdle(EnqueueCopy(conversion, after), {copies_, casts_});
  }

  std::optional<double> CopySpeed() override ABSL_LOCKS_EXCLUDED(timed_mutex_) {
    if (!Enter().ok()) return std::nullopt;
    int64_t bytes = 0;
    absl::Duration time;
    const absl::MutexLock lock(&timed_mutex_);
    for (const Timed& copy : timed_) {
      if (!copy.ended->Done()) break;
      const absl::StatusOr<absl::Duration> took = copy.ended->TimeSince(*copy.begun);
      if (!took.ok()) return std::nullopt;  // It is lost, which others tell.
      bytes += copy.bytes;
      time += *took;
    }
    if (time == absl::ZeroDuration()) return std::nullopt;
    return static_cast<double>(bytes) / absl::ToDoubleSeconds(time);
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

  void EndOperations() override { at::cuda::clearCublasWorkspaces(); }
  void ComputeIn(std::shared_ptr<TensorMemory> memory) override { KeepCudaTensorsIn(std::move(memory)); }

  // By a kernel that reaches the host's memory itself: the engine for copies takes them one by one as they come.
  absl::Status Operate(const Conversion& conversion) override {
    DITSERVE_RETURN_IF_ERROR(Enter());
    return Convert(conversion, computing_);
  }

  absl::StatusOr<Events> Mark() override {
    DITSERVE_RETURN_IF_ERROR(Enter());
    Events marks;
    for (const cudaStream_t stream : {copies_, casts_, computing_}) {
      DITSERVE_ASSIGN_OR_RETURN(marks.emplace_back(), Record(stream));
    }
    return marks;
  }

  absl::StatusOr<EventPtr> RecordOperations() override { return OrIdle(EnterAndRecord(kUntimed), {computing_}); }
  absl::StatusOr<EventPtr> MarkOperations() override { return EnterAndRecord(kTimed); }

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
    static_cast<void>(faults_->Enter());
    DITSERVE_RETURN_IF_ERROR(faults_->Loss());
    const cudaError_t error = cudaStreamQuery(computing_);
    if (error == cudaErrorNotReady) cudaGetLastError();  // It would be found by whoever asks next.
    if (error != cudaErrorNotReady) static_cast<void>(StatusOf(error, "looking at the device"));
    return faults_->Loss();
  }

 private:
  CudaDevice(int index, int capability, Memory memory, std::shared_ptr<CudaFaults> faults)
      : index_(index),
        capability_(capability),
        memory_(memory),
        name_(absl::StrCat("cuda:", index)),
        faults_(std::move(faults)) {}

  // Non-blocking, as LibTorch's streams are: the legacy stream, should anything use it, would wait for any other kind
  // and be waited for. Priorities are between kernels alone, and none is interrupted: a cast takes microseconds, and
  // goes first where a kernel makes room, or the link would stand until nothing is computed. Copies know no priority.
  absl::Status CreateStreams() {
    int least = 0, greatest = 0;
    DITSERVE_RETURN_IF_ERROR(StatusOf(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for priorities"));
    DITSERVE_RETURN_IF_ERROR(
        StatusOf(cudaStreamCreateWithPriority(&copies_, cudaStreamNonBlocking, least), "creating a stream for copies"));
    DITSERVE_RETURN_IF_ERROR(StatusOf(cudaStreamCreateWithPriority(&casts_, cudaStreamNonBlocking, greatest),
                                      "creating a stream for casts"));
    return StatusOf(cudaStreamCreateWithPriority(&computing_, cudaStreamNonBlocking, least),
                    "creating a stream for operations");
  }

  absl::Status CommitStaging() {
    DITSERVE_ASSIGN_OR_RETURN(std::byte* const staging, addresses_->Reserve(kStagingBytes));
    if (absl::Status committed = addresses_->Commit(staging, kStagingBytes); !committed.ok()) {
      addresses_->Release(staging, kStagingBytes);
      return committed;
    }
    staging_ = staging;
    return absl::OkStatus();
  }

  // The calling thread's calls are this device's.
  absl::Status Enter() const { return faults_->Enter(); }

  absl::Status StatusOf(cudaError_t error, absl::string_view what) const { return faults_->StatusOf(error, what); }

  absl::Status OrderAfter(const EventPtr& event, cudaStream_t stream) const {
    if (event == nullptr) return absl::OkStatus();
    return StatusOf(cudaStreamWaitEvent(stream, static_cast<CudaEvent&>(*event).get(), cudaEventWaitDefault),
                    "ordering after an event");
  }

  // Who waits sleeps: a thread that asks again and again would take a processor from the one that issues.
  static constexpr unsigned kTimed = cudaEventBlockingSync, kUntimed = kTimed | cudaEventDisableTiming;

  absl::StatusOr<EventPtr> Record(cudaStream_t stream, unsigned flags = kUntimed) const {
    cudaEvent_t raw;
    DITSERVE_RETURN_IF_ERROR(StatusOf(cudaEventCreateWithFlags(&raw, flags), "creating an event"));
    auto event = std::make_shared<CudaEvent>(raw, faults_);
    DITSERVE_RETURN_IF_ERROR(StatusOf(cudaEventRecord(raw, stream), "recording an event"));
    return event;
  }
  absl::StatusOr<EventPtr> EnterAndRecord(unsigned flags) const {
    DITSERVE_RETURN_IF_ERROR(Enter());
    return Record(computing_, flags);
  }

  // The event, or why there is none: then nothing is under way on these streams, for nobody could wait for it.
  absl::StatusOr<EventPtr> OrIdle(absl::StatusOr<EventPtr> event, std::initializer_list<cudaStream_t> streams) const {
    if (event.ok()) return event;
    for (const cudaStream_t stream : streams) {
      static_cast<void>(faults_->WaitBy([stream] { return cudaStreamSynchronize(stream); }, "waiting for the device"));
    }
    return event;
  }

  absl::Status OrderAfterAll(absl::Span<const EventPtr> events, cudaStream_t stream) const {
    for (const EventPtr& event : events) DITSERVE_RETURN_IF_ERROR(OrderAfter(event, stream));
    return absl::OkStatus();
  }

  // On the device, of no elements too.
  absl::StatusOr<EventPtr> EnqueueCast(const Conversion& conversion, absl::Span<const EventPtr> after) const {
    DITSERVE_RETURN_IF_ERROR(OrderAfterAll(after, casts_));
    DITSERVE_RETURN_IF_ERROR(Convert(conversion, casts_));
    return Record(casts_);
  }

  static bool IsCopy(const Conversion& conversion) {
    return conversion.source.dtype == conversion.target.dtype && conversion.through.empty();
  }

  absl::StatusOr<EventPtr> EnqueueCopy(const Conversion& conversion, absl::Span<const EventPtr> after) const
      ABSL_LOCKS_EXCLUDED(copies_mutex_) {
    const auto& [source, through, target, count] = conversion;
    const absl::MutexLock lock(&copies_mutex_);
    DITSERVE_RETURN_IF_ERROR(OrderAfterAll(after, copies_));
    if (!IsCopy(conversion)) return ConvertBySlots(conversion);
    const int64_t bytes = count * SizeOf(source.dtype);
    if (IsHost(source.memory)) return TimedCopy(source, target, bytes);
    DITSERVE_RETURN_IF_ERROR(Copy(source, target, bytes));
    return Record(copies_);
  }

  // From the host's memory, in parts: the engine for copies brings each to a slot, and goes on with the next while a
  // kernel converts it. A kernel that read the host's memory itself would be as slow as the link, in the way of what is
  // computed, and copies would wait for it.
  absl::StatusOr<EventPtr> ConvertBySlots(const Conversion& conversion) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(copies_mutex_) {
    const auto& [source, through, target, count] = conversion;
    EventPtr converted;
    for (int64_t done = 0; done < count;) {
      Conversion part = conversion;
      part.source.data += done * SizeOf(source.dtype);
      part.target.data += done * SizeOf(target.dtype);
      part.count = std::min(count - done, (kSlotBytes - kLine) / SizeOf(source.dtype));
      DITSERVE_ASSIGN_OR_RETURN(converted, ConvertBySlot(part));
      done += part.count;
    }
    return converted;
  }

  absl::StatusOr<EventPtr> ConvertBySlot(const Conversion& part) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(copies_mutex_) {
    EventPtr& in_use_until = in_use_until_[next_slot_];
    Conversion on_device = part;
    on_device.source.memory = memory_;
    on_device.source.data = staging_ + static_cast<int64_t>(next_slot_) * kSlotBytes + PlaceInLine(part);
    next_slot_ = (next_slot_ + 1) % kSlots;
    DITSERVE_RETURN_IF_ERROR(OrderAfter(in_use_until, copies_));
    const int64_t bytes = part.count * SizeOf(part.source.dtype);
    DITSERVE_ASSIGN_OR_RETURN(const EventPtr copied, TimedCopy(part.source, on_device.source, bytes));
    DITSERVE_RETURN_IF_ERROR(OrderAfter(copied, casts_));
    DITSERVE_RETURN_IF_ERROR(Convert(on_device, casts_));
    DITSERVE_ASSIGN_OR_RETURN(in_use_until, Record(casts_));
    return in_use_until;
  }

  // Where in a line of 16 bytes the first element must stand, so that one is at the beginning of a line where its
  // target is too: only such are read and written a line at a time.
  static int64_t PlaceInLine(const Conversion& conversion) {
    const int64_t target_size = SizeOf(conversion.target.dtype);
    const auto place = static_cast<int64_t>(reinterpret_cast<uintptr_t>(conversion.target.data) % kLine);
    const int64_t head = (kLine - place) % kLine / target_size;
    return (kLine - head * SizeOf(conversion.source.dtype) % kLine) % kLine;
  }

  absl::Status Convert(const Conversion& conversion, cudaStream_t stream) const {
    const auto& [source, through, target, count] = conversion;
    if (count == 0) return absl::OkStatus();
    if (through.size() > kMaxRoundings) return absl::InternalError("more roundings than a profile has stations");
    DITSERVE_ASSIGN_OR_RETURN(const bool reaches, KernelsReach(IsHost(source.memory) ? source : target, count));
    if (!reaches) return CastOnHost(conversion, stream);
    Roundings roundings;
    for (const DType dtype : through) roundings.dtypes[roundings.count++] = dtype;
    return StatusOf(CudaCast(source.data, source.dtype, roundings, target.data, target.dtype, count, stream),
                    "converting");
  }

  // Whether kernels can access all of it, at the host's addresses: host memory that could not be registered they can't,
  // and on some systems what is registered has other addresses for them.
  absl::StatusOr<bool> KernelsReach(const ElementSpan& span, int64_t count) const {
    const int64_t bytes = IsHost(span.memory) ? count * SizeOf(span.dtype) : 0;
    for (int64_t done = 0; done < bytes; done += BytesInRange(span, done)) {
      cudaPointerAttributes attributes;
      DITSERVE_RETURN_IF_ERROR(
          StatusOf(cudaPointerGetAttributes(&attributes, span.data + done), "asking for host memory"));
      if (attributes.type != cudaMemoryTypeHost || attributes.devicePointer != span.data + done) return false;
    }
    return true;
  }

  // The conversion by the host, in parts. Waits for the stream before, as it may write what is read here, and after
  // each part: whether a copy of memory that is not pinned is done when its call returns CUDA leaves open.
  absl::Status CastOnHost(const Conversion& conversion, cudaStream_t stream) const {
    constexpr int64_t kPart = 1 << 18;  // Elements.
    const auto& [source, through, target, count] = conversion;
    const bool to_host = IsHost(target.memory);
    const DType copied = to_host ? source.dtype : target.dtype;
    std::vector<std::byte> staged(static_cast<size_t>(std::min(count, kPart) * SizeOf(copied)));
    const auto wait = [&] {
      return faults_->WaitBy([stream] { return cudaStreamSynchronize(stream); }, "waiting for the device");
    };
    DITSERVE_RETURN_IF_ERROR(wait());
    for (int64_t at = 0; at < count; at += kPart) {
      const int64_t part = std::min(count - at, kPart);
      std::byte* const from = source.data + at * SizeOf(source.dtype);
      std::byte* const to = target.data + at * SizeOf(target.dtype);
      if (!to_host) Cast(from, source.dtype, through, staged.data(), copied, part);
      DITSERVE_RETURN_IF_ERROR(
          StatusOf(cudaMemcpyAsync(to_host ? staged.data() : to, to_host ? from : staged.data(),
                                   static_cast<size_t>(part * SizeOf(copied)), cudaMemcpyDefault, stream),
                   "copying what the host converts"));
      DITSERVE_RETURN_IF_ERROR(wait());
      if (to_host) Cast(staged.data(), copied, through, to, target.dtype, part);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<EventPtr> TimedCopy(const ElementSpan& source, const ElementSpan& target, int64_t bytes) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(copies_mutex_) ABSL_LOCKS_EXCLUDED(timed_mutex_) {
    DITSERVE_ASSIGN_OR_RETURN(EventPtr begun, Record(copies_, kTimed));
    DITSERVE_RETURN_IF_ERROR(Copy(source, target, bytes));
    DITSERVE_ASSIGN_OR_RETURN(EventPtr ended, Record(copies_, kTimed));
    const absl::MutexLock lock(&timed_mutex_);
    timed_.push_back({std::move(begun), ended, bytes});
    if (timed_.size() > kTimedCopies) timed_.pop_front();
    return ended;
  }

  // In parts of which each lies in one pinned range of the host's memory: a copy across two may be refused.
  absl::Status Copy(const ElementSpan& source, const ElementSpan& target, int64_t bytes) const {
    for (int64_t done = 0; done < bytes;) {
      const int64_t part = std::min({bytes - done, BytesInRange(source, done), BytesInRange(target, done)});
      DITSERVE_RETURN_IF_ERROR(
          StatusOf(cudaMemcpyAsync(target.data + done, source.data + done, part, cudaMemcpyDefault, copies_),
                   "copying weights"));
      done += part;
    }
    return absl::OkStatus();
  }
  // From so many bytes on, in the same pinned range.
  static int64_t BytesInRange(const ElementSpan& span, int64_t begin) {
    if (!IsHost(span.memory)) return std::numeric_limits<int64_t>::max();
    constexpr int64_t kBytes = CudaHostMemory::kRangeBytes;
    return kBytes - static_cast<int64_t>(reinterpret_cast<uintptr_t>(span.data + begin) % kBytes);
  }

  // Of GPUs for which LibTorch has attention in bfloat16, and of those whose tensor cores multiply float8. (LibTorch's
  // own check of that is that of its products.)
  static constexpr int kBFloat16Capability = 80, kFloat8Capability = 89;

  const int index_;
  const int capability_;  // Times ten.
  const Memory memory_;
  int64_t runtime_bytes_ = 0;  // Of the context.
  const std::string name_;
  cudaStream_t copies_ = nullptr;
  cudaStream_t casts_ = nullptr;
  cudaStream_t computing_ = nullptr;
  const std::shared_ptr<CudaFaults> faults_;  // Of its events too.
  CudaHostMemory host_memory_{faults_.get()};
  std::unique_ptr<CudaAddresses> addresses_;

  // Each slot takes what a transfer moves at a time (4 MiB), for which a link of 55 GB/s needs 76 us; so many, as no
  // cast begins while a product of half a millisecond has the whole GPU. Together they are of whole granules.
  static constexpr int64_t kSlots = 8, kSlotBytes = 17 << 18, kStagingBytes = kSlots * kSlotBytes, kLine = 16;
  std::byte* staging_ = nullptr;

  // The last copies from the host's memory: some 200 MB where weights stream.
  struct Timed {
    EventPtr begun, ended;
    int64_t bytes;
  };
  static constexpr size_t kTimedCopies = 50;

  // Held by one thread at a time that gives the stream of copies something: what it waits for, the copy, and the events
  // by which that is timed belong together. (A copy may wait for the device where host memory could not be pinned.)
  mutable absl::Mutex copies_mutex_;
  mutable std::array<EventPtr, kSlots> in_use_until_ ABSL_GUARDED_BY(copies_mutex_);  // Of the slots.
  mutable size_t next_slot_ ABSL_GUARDED_BY(copies_mutex_) = 0;
  mutable absl::Mutex timed_mutex_;
  mutable std::deque<Timed> timed_ ABSL_GUARDED_BY(timed_mutex_);
};

}  // namespace
}  // namespace ditserve

extern "C" ditserve::Device* DitserveMakeDevice(int index, ditserve::Memory memory, std::string* error) {
  absl::StatusOr<std::unique_ptr<ditserve::CudaDevice>> device = ditserve::CudaDevice::Make(index, memory);
  if (device.ok()) return device->release();
  *error = std::string(device.status().message());
  return nullptr;
}
