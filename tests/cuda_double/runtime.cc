#include "tests/cuda_double/runtime.h"

#include <dlfcn.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace ditserve::cuda_double {
namespace {

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local int64_t thread_synchronizations = 0;

// A number of the calling thread.
uintptr_t ThreadNumber() {
  static std::atomic<uintptr_t> threads = 0;
  thread_local const uintptr_t number = ++threads;
  return number;
}

uintptr_t Number(const void* handle) { return reinterpret_cast<uintptr_t>(handle); }

// Whether LibTorch has called, whose pools keep what they made.
bool IsOfLibTorch(const void* address) {
  Dl_info module;
  return dladdr(address, &module) != 0 && absl::StrContains(module.dli_fname, "libc10");
}

}  // namespace

int CurrentDevice() { return current_device; }
void SetCurrentDevice(int device) { current_device = device; }
int64_t ThreadSynchronizations() { return thread_synchronizations; }

cudaError_t Remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t LastError(bool clear) {
  const cudaError_t lost = Runtime::Get().LostBy(current_device);
  const cudaError_t error = lost != cudaSuccess ? lost : last_error;
  if (clear) last_error = cudaSuccess;
  return error;
}

cudaUUID_t UuidOf(int device) {
  cudaUUID_t uuid;
  for (size_t i = 0; i < sizeof uuid.bytes; ++i)
    uuid.bytes[i] = static_cast<char>(i * 37 + static_cast<size_t>(device));
  return uuid;
}

bool IsSticky(cudaError_t error) {
  constexpr cudaError_t kSticky[] = {cudaErrorDevicesUnavailable,
                                     cudaErrorDeviceUninitialized,
                                     cudaErrorContextIsDestroyed,
                                     cudaErrorMpsConnectionFailed,
                                     cudaErrorMpsRpcFailure,
                                     cudaErrorECCUncorrectable,
                                     cudaErrorNvlinkUncorrectable,
                                     cudaErrorContained,
                                     cudaErrorIllegalAddress,
                                     cudaErrorLaunchTimeout,
                                     cudaErrorAssert,
                                     cudaErrorHardwareStackError,
                                     cudaErrorIllegalInstruction,
                                     cudaErrorMisalignedAddress,
                                     cudaErrorInvalidAddressSpace,
                                     cudaErrorInvalidPc,
                                     cudaErrorLaunchFailure,
                                     cudaErrorTensorMemoryLeak,
                                     cudaErrorMpsClientTerminated,
                                     cudaErrorExternalDevice};
  return std::find(std::begin(kSticky), std::end(kSticky), error) != std::end(kSticky);
}

Runtime& Runtime::Get() {
  static auto* const runtime = new Runtime();
  return *runtime;
}

void Runtime::Begin(const Options& options) {
  machine_.Begin(options.seed);
  const absl::MutexLock lock(&mutex_);
  options_ = options;
  std::fill(lost_.begin(), lost_.end(), cudaSuccess);
  last_error = cudaSuccess;
  synchronizations_ = 0;
  bytes_without_pages_ = 0;
  dropped_ = nullptr;
  std::erase_if(events_, [](const auto& each) { return !each.second.pooled; });
  std::erase_if(streams_, [this](const auto& each) {
    if (!each.second.pooled) machine_.RemoveStream(each.second.index);
    return !each.second.pooled;
  });
  memory_.Clear();
  peers_.fill(0);
  calls_.clear();
  faults_.clear();
  operation_fault_ = {"", 0, cudaSuccess};
  others_bytes_.fill(0);
  has_context_.fill(false);
  launches_.clear();
  sites_.clear();
}

cudaError_t Runtime::Enter(const char* function) {
  const absl::MutexLock lock(&mutex_);
  auto calls = calls_.find(function);  // Makes no string of the name.
  if (calls == calls_.end()) calls = calls_.emplace(function, 0).first;
  ++calls->second;
  for (auto fault = faults_.begin(); fault != faults_.end(); ++fault) {
    if (!fault->function.empty() && fault->function != function) continue;
    const cudaError_t error = fault->error;
    if (fault->left != kEveryCall) {
      if (--fault->left > 0) continue;
      faults_.erase(fault);
    }
    if (IsSticky(error)) lost_[static_cast<size_t>(current_device)] = error;
    return error;
  }
  return cudaSuccess;
}

bool Runtime::Passes(const char* function, const void* return_address) {
  const absl::MutexLock lock(&mutex_);
  sites_.emplace(return_address, function);
  return dropped_ != return_address;
}

cudaError_t Runtime::AddStream(bool blocking, int priority, const void* caller, cudaStream_t* made) {
  const absl::MutexLock lock(&mutex_);
  const uintptr_t handle = NextHandle();
  streams_.emplace(handle,
                   Stream{machine_.AddStream(), current_device, blocking, nullptr, IsOfLibTorch(caller), priority});
  *made = reinterpret_cast<cudaStream_t>(handle);
  return cudaSuccess;
}

cudaError_t Runtime::RemoveStream(cudaStream_t handle) {
  const absl::MutexLock lock(&mutex_);
  const auto stream = streams_.find(Number(handle));
  if (stream == streams_.end()) {
    machine_.Report("cudaStreamDestroy: there is no such stream");
    return cudaErrorInvalidResourceHandle;
  }
  machine_.RemoveStream(stream->second.index);
  streams_.erase(stream);
  return cudaSuccess;
}

// The legacy stream of a device, and the default stream of a thread on it, come when they are asked for.
Runtime::Stream* Runtime::Find(cudaStream_t handle) {
  const bool legacy = handle == nullptr || handle == cudaStreamLegacy;
  if (!legacy && handle != cudaStreamPerThread) {
    const auto stream = streams_.find(Number(handle));
    return stream == streams_.end() ? nullptr : &stream->second;
  }
  if (legacy) return &Legacy(current_device);
  uintptr_t& own = default_streams_[ThreadNumber() * kMostDevices + static_cast<uintptr_t>(current_device)];
  if (own == 0) {
    own = NextHandle();
    streams_.emplace(own, Stream{machine_.AddStream(), current_device, /*blocking=*/true, nullptr, /*pooled=*/true});
  }
  return &streams_.at(own);
}

Runtime::Stream& Runtime::Legacy(int device) {
  uintptr_t& own = default_streams_[static_cast<uintptr_t>(device)];
  if (own == 0) {
    own = NextHandle();
    streams_.emplace(own, Stream{machine_.AddStream(), device, /*blocking=*/false, nullptr, /*pooled=*/true});
  }
  return streams_.at(own);
}

std::vector<Runtime::PointPtr> Runtime::Implied(const Stream& stream) {
  std::vector<PointPtr> after;
  Stream& legacy = Legacy(stream.device);
  if (stream.blocking) after.push_back(legacy.last);
  if (&stream == &legacy) {
    for (const auto& [handle, other] : streams_) {
      if (other.blocking && other.device == stream.device) after.push_back(other.last);
    }
  }
  return after;
}

Runtime::PointPtr Runtime::EnqueueOn(Stream& stream, const std::string& place, std::vector<PointPtr> after,
                                     const Accesses& accesses, LateMachine::Work work) {
  const std::vector<PointPtr> implied = Implied(stream);
  after.insert(after.end(), implied.begin(), implied.end());
  if (operation_fault_.left > 0 && --operation_fault_.left == 0) {
    std::atomic<cudaError_t>& lost = lost_[static_cast<size_t>(stream.device)];
    work = [&lost, error = operation_fault_.error] { lost = error; };
  }
  stream.last = machine_.Enqueue(stream.index, place, after, accesses, std::move(work));
  return stream.last;
}

bool Runtime::CheckAccesses(const std::string& place, int device, bool kernel, const Accesses& accesses) {
  for (const LateMachine::Access& access : accesses) {
    MemoryMap::Place at = memory_.Locate(access.begin, access.bytes);
    const uint32_t own = 1u << device, mine = own | peers_[static_cast<size_t>(device)];
    if (at.kind == MemoryMap::Kind::kPageable && kernel) at.wrong = "lie in host memory that is not registered";
    if (at.kind == MemoryMap::Kind::kPinned && kernel && ((at.access & own) == 0 || options_.host_apart)) {
      at.wrong = absl::StrCat("lie in host memory that has no such address on device ", device);
    }
    if (at.pieces > 1 && !kernel) at.wrong = "lie across ranges of host memory that were registered one by one";
    if (at.kind == MemoryMap::Kind::kDevice && (at.access & (kernel ? mine : ~0u)) == 0) {
      at.wrong = absl::StrCat("are not accessible to device ", device);
    }
    if (at.wrong.empty()) continue;
    machine_.Report(
        absl::StrCat(access.bytes, " bytes that ", place, access.writes ? " writes " : " reads ", at.wrong));
    return false;
  }
  return true;
}

cudaError_t Runtime::EnqueueFound(cudaStream_t handle, const std::string& place, bool kernel, const Accesses& given,
                                  FoundWork work) {
  Stream* const stream = Find(handle);
  if (stream == nullptr || (kernel && stream->device != current_device)) return cudaErrorInvalidResourceHandle;
  Accesses accesses = given;
  std::erase_if(accesses, [](const LateMachine::Access& access) { return access.bytes == 0; });
  if (!CheckAccesses(place, stream->device, kernel, accesses)) return cudaErrorInvalidValue;
  std::vector<std::byte*> found;
  for (const LateMachine::Access& access : given) found.push_back(memory_.Find(access.begin, access.bytes));
  LateMachine::Work bound;
  const std::atomic<cudaError_t>& lost = lost_[static_cast<size_t>(stream->device)];
  if (work) {
    bound = [&lost, work = std::move(work), found = std::move(found)]() mutable {
      if (lost == cudaSuccess) work(found);
    };
  }
  EnqueueOn(*stream, place, {}, accesses, std::move(bound));
  return cudaSuccess;
}

cudaError_t Runtime::Enqueue(cudaStream_t handle, const std::string& place, const Accesses& accesses, FoundWork work) {
  const absl::MutexLock lock(&mutex_);
  return EnqueueFound(handle, place, /*kernel=*/false, accesses, std::move(work));
}

cudaError_t Runtime::Launch(const std::string& kernel, dim3 grid, dim3 block, cudaStream_t stream, KernelWork work) {
  const absl::MutexLock lock(&mutex_);
  launches_.push_back({kernel, grid, block, current_device, stream});
  return EnqueueFound(stream, kernel, /*kernel=*/true, work.accesses, std::move(work.work));
}

cudaError_t Runtime::LastOf(cudaStream_t handle, Moment& last) {
  const absl::MutexLock lock(&mutex_);
  const Stream* const stream = Find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  last = {stream->last, stream->device};
  return cudaSuccess;
}

std::vector<Runtime::Moment> Runtime::LastOfAll() {
  const absl::MutexLock lock(&mutex_);
  std::vector<Moment> all;
  for (const auto& [handle, stream] : streams_) {
    if (stream.device == current_device) all.push_back({stream.last, stream.device});
  }
  return all;
}

cudaError_t Runtime::WaitFor(const Moment& moment) {
  ++synchronizations_, ++thread_synchronizations;
  if (moment.point != nullptr) machine_.WaitFor(moment.point);
  return LostBy(moment.device);
}

cudaError_t Runtime::Ask(const Moment& moment) {
  const bool done = moment.point == nullptr || machine_.IsDone(moment.point);
  const cudaError_t lost = LostBy(moment.device);
  return lost != cudaSuccess ? lost : done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t Runtime::AddEvent(const void* caller, unsigned flags, cudaEvent_t* made) {
  const absl::MutexLock lock(&mutex_);
  const uintptr_t handle = NextHandle();
  events_.emplace(handle,
                  EventState{current_device, (flags & cudaEventDisableTiming) == 0, nullptr, IsOfLibTorch(caller)});
  *made = reinterpret_cast<cudaEvent_t>(handle);
  return cudaSuccess;
}

Runtime::EventState* Runtime::Find(cudaEvent_t handle) {
  const auto event = events_.find(Number(handle));
  if (event != events_.end()) return &event->second;
  machine_.Report("there is no such event");
  return nullptr;
}

cudaError_t Runtime::RemoveEvent(cudaEvent_t handle) {
  const absl::MutexLock lock(&mutex_);
  if (Find(handle) == nullptr) return cudaErrorInvalidResourceHandle;
  events_.erase(Number(handle));
  return cudaSuccess;
}

cudaError_t Runtime::Record(cudaEvent_t handle, cudaStream_t on) {
  const absl::MutexLock lock(&mutex_);
  EventState* const event = Find(handle);
  Stream* const stream = Find(on);
  if (event == nullptr || stream == nullptr || event->device != stream->device) return cudaErrorInvalidResourceHandle;
  event->point = EnqueueOn(*stream, "an event's record", {}, {}, nullptr);
  return cudaSuccess;
}

cudaError_t Runtime::Order(cudaStream_t on, cudaEvent_t handle) {
  const absl::MutexLock lock(&mutex_);
  EventState* const event = Find(handle);
  Stream* const stream = Find(on);
  if (event == nullptr || stream == nullptr) return cudaErrorInvalidResourceHandle;
  EnqueueOn(*stream, "a stream's wait", {event->point}, {}, nullptr);
  return cudaSuccess;
}

cudaError_t Runtime::RecordOf(cudaEvent_t handle, Moment& record) {
  const absl::MutexLock lock(&mutex_);
  const EventState* const event = Find(handle);
  if (event == nullptr) return cudaErrorInvalidResourceHandle;
  record = {event->point, event->device};
  return cudaSuccess;
}

cudaError_t Runtime::TimedRecordOf(cudaEvent_t handle, Moment& record) {
  const absl::MutexLock lock(&mutex_);
  const EventState* const event = Find(handle);
  if (event == nullptr || !event->timed || event->point == nullptr) return cudaErrorInvalidResourceHandle;
  record = {event->point, event->device};
  return cudaSuccess;
}

int64_t Runtime::FreeBytes(int device) {
  const bool launched = std::any_of(launches_.begin(), launches_.end(),
                                    [device](const cuda_double::Launch& each) { return each.device == device; });
  const auto of = static_cast<size_t>(device);
  const int64_t runtime = (has_context_[of] ? options_.context_bytes : 0) + (launched ? options_.module_bytes : 0);
  return std::max<int64_t>(options_.device_bytes - others_bytes_[of] - runtime - memory_.used_bytes(device), 0);
}

void Runtime::MakeContext(int device) {
  const absl::MutexLock lock(&mutex_);
  has_context_[static_cast<size_t>(device)] = true;
}

void Runtime::SetOthers(int device, int64_t bytes) {
  const absl::MutexLock lock(&mutex_);
  others_bytes_[static_cast<size_t>(device)] = bytes;
}

void Runtime::Take(const void* begin, int64_t bytes, const char* place) {
  if (machine_.HostTakes(begin, bytes, place)) return;
  memory_.Spoil(begin, bytes);
  while (machine_.RunSome()) {
  }
}

MemoryMap::Kind Runtime::KindOf(const void* begin, int64_t bytes) {
  const absl::MutexLock lock(&mutex_);
  return memory_.Locate(begin, bytes).kind;
}

void* Runtime::DevicePointerOf(const void* data, const MemoryMap::Place& place) const {
  constexpr uintptr_t kApart = uintptr_t{1} << 46;
  if ((place.access & (1u << CurrentDevice())) == 0) return nullptr;
  return reinterpret_cast<void*>(Number(data) ^ (options_.host_apart ? kApart : 0));
}

cudaError_t Runtime::AllowPeer(int device, int peer) {
  const absl::MutexLock lock(&mutex_);
  uint32_t& peers = peers_[static_cast<size_t>(device)];
  if ((peers >> peer & 1u) != 0) return cudaErrorPeerAccessAlreadyEnabled;
  peers |= 1u << peer;
  return cudaSuccess;
}

std::vector<std::string> Runtime::Leaks() {
  const absl::MutexLock lock(&mutex_);
  std::vector<std::string> leaks = memory_.Describe();
  for (const auto& [handle, stream] : streams_) {
    if (!stream.pooled) leaks.push_back(absl::StrCat("a stream of device ", stream.device));
  }
  for (const auto& [handle, event] : events_) {
    if (!event.pooled) leaks.push_back(absl::StrCat("an event of device ", event.device));
  }
  return leaks;
}

int64_t Runtime::Calls(const std::string& function) {
  const absl::MutexLock lock(&mutex_);
  return calls_[function];
}

std::map<std::string, int64_t> Runtime::AllCalls() {
  const absl::MutexLock lock(&mutex_);
  return {calls_.begin(), calls_.end()};
}

void Runtime::FailCall(const std::string& function, int64_t n, cudaError_t error) {
  const absl::MutexLock lock(&mutex_);
  faults_.push_back({function, n, error});
}

void Runtime::FailOperation(int64_t n, cudaError_t error) {
  const absl::MutexLock lock(&mutex_);
  operation_fault_ = {"", n, error};
}

std::vector<const void*> Runtime::SiteAddresses() {
  const absl::MutexLock lock(&mutex_);
  std::vector<const void*> addresses;
  for (const auto& [address, function] : sites_) addresses.push_back(address);
  return addresses;
}

std::string Runtime::FunctionOf(const void* site) {
  const absl::MutexLock lock(&mutex_);
  return sites_[site];
}

std::vector<cuda_double::Launch> Runtime::Launches() {
  const absl::MutexLock lock(&mutex_);
  return launches_;
}

}  // namespace ditserve::cuda_double
