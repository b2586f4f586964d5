#ifndef DITSERVE_TESTS_CUDA_DOUBLE_RUNTIME_H_
#define DITSERVE_TESTS_CUDA_DOUBLE_RUNTIME_H_

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "tests/cuda_double/cuda_double.h"
#include "tests/cuda_double/memory_map.h"
#include "tests/testing/late_machine.h"

namespace ditserve::cuda_double {

// What the calls of the doubled runtime have in common: devices, streams, events, memory, and which call is to fail.
//
// Thread safety: thread-safe. Lock order: its mutex, then the machine's.
class Runtime {
 public:
  static constexpr int kMostDevices = 8;
  using PointPtr = LateMachine::PointPtr;
  using Accesses = std::vector<LateMachine::Access>;

  // The process's. It is never destroyed: calls come until the end.
  static Runtime& Get();

  void Begin(const Options& options);
  LateMachine& machine() { return machine_; }
  const Options& options() const { return options_; }

  // --- Calls.
  // Counts a call; the error that a test asked for.
  cudaError_t Enter(const char* function) ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether the call from this site is left out.
  bool Passes(const char* function, const void* return_address) ABSL_LOCKS_EXCLUDED(mutex_);
  cudaError_t LostBy(int device) const { return lost_[static_cast<size_t>(device)]; }

  // --- Streams.
  // `caller`: who asks; what LibTorch asks for stays in its pools.
  cudaError_t AddStream(bool blocking, int priority, const void* caller, cudaStream_t* made)
      ABSL_LOCKS_EXCLUDED(mutex_);
  cudaError_t RemoveStream(cudaStream_t handle) ABSL_LOCKS_EXCLUDED(mutex_);
  // An operation at the end of a stream. `place` names it; `found` are the places of the accesses' bytes.
  using FoundWork = absl::AnyInvocable<void(const std::vector<std::byte*>& found)>;
  cudaError_t Enqueue(cudaStream_t handle, const std::string& place, const Accesses& accesses, FoundWork work)
      ABSL_LOCKS_EXCLUDED(mutex_);
  cudaError_t Launch(const std::string& kernel, dim3 grid, dim3 block, cudaStream_t stream, KernelWork work)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // A point of a device; null has passed.
  struct Moment {
    PointPtr point;
    int device = 0;
  };
  // The end of what a stream, or every stream of the calling thread's device, has now.
  cudaError_t LastOf(cudaStream_t handle, Moment& last) ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<Moment> LastOfAll() ABSL_LOCKS_EXCLUDED(mutex_);
  // Blocks; the device may be lost meanwhile.
  cudaError_t WaitFor(const Moment& moment);
  cudaError_t Ask(const Moment& moment);

  // --- Events.
  cudaError_t AddEvent(const void* caller, unsigned flags, cudaEvent_t* made) ABSL_LOCKS_EXCLUDED(mutex_);
  cudaError_t RemoveEvent(cudaEvent_t handle) ABSL_LOCKS_EXCLUDED(mutex_);
  cudaError_t Record(cudaEvent_t handle, cudaStream_t on) ABSL_LOCKS_EXCLUDED(mutex_);
  cudaError_t Order(cudaStream_t on, cudaEvent_t handle) ABSL_LOCKS_EXCLUDED(mutex_);
  cudaError_t RecordOf(cudaEvent_t handle, Moment& record) ABSL_LOCKS_EXCLUDED(mutex_);
  // The same of an event that knows the time, and was recorded.
  cudaError_t TimedRecordOf(cudaEvent_t handle, Moment& record) ABSL_LOCKS_EXCLUDED(mutex_);

  // --- Memory, by whoever holds the mutex.
  absl::Mutex& mutex() ABSL_LOCK_RETURNED(mutex_) { return mutex_; }
  MemoryMap& memory() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return memory_; }
  // Bytes that a device still has.
  int64_t FreeBytes(int device) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetOthers(int device, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void MakeContext(int device) ABSL_LOCKS_EXCLUDED(mutex_);
  // The host has taken memory; work that comes too late is done while it can be.
  void Take(const void* begin, int64_t bytes, const char* place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  MemoryMap::Kind KindOf(const void* begin, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Where kernels of the calling thread's device find registered host memory; null: nowhere.
  void* DevicePointerOf(const void* data, const MemoryMap::Place& place) const;
  cudaError_t AllowPeer(int device, int peer) ABSL_LOCKS_EXCLUDED(mutex_);

  // --- For the header.
  std::vector<std::string> Leaks() ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t Calls(const std::string& function) ABSL_LOCKS_EXCLUDED(mutex_);
  std::map<std::string, int64_t> AllCalls() ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t synchronizations() const { return synchronizations_; }
  int64_t bytes_without_pages() const { return bytes_without_pages_; }
  void AddBytesWithoutPages(int64_t bytes) { bytes_without_pages_ += bytes; }
  void FailCall(const std::string& function, int64_t n, cudaError_t error) ABSL_LOCKS_EXCLUDED(mutex_);
  void FailOperation(int64_t n, cudaError_t error) ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<const void*> SiteAddresses() ABSL_LOCKS_EXCLUDED(mutex_);
  std::string FunctionOf(const void* site) ABSL_LOCKS_EXCLUDED(mutex_);
  void DropSite(const void* address) { dropped_ = address; }
  std::vector<cuda_double::Launch> Launches() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Duration EndsAtOnSharedProcessors() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Stream {
    size_t index;  // In the machine.
    int device;
    bool blocking;
    PointPtr last;
    bool pooled = false;  // LibTorch's.
    int priority = 0;     // The least number goes first.
  };
  struct EventState {
    int device;
    bool timed;
    PointPtr point;  // Of the last record.
    bool pooled = false;
  };

  Runtime() : machine_(Options().seed) {}
  // As the runtime's are pointers: LibTorch takes one that is odd for a number of its own.
  uintptr_t NextHandle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return next_handle_ += 16; }
  Stream* Find(cudaStream_t handle) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  EventState* Find(cudaEvent_t handle) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Stream& Legacy(int device) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What is enqueued on the stream comes after these, by what kind of stream it is.
  std::vector<PointPtr> Implied(const Stream& stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  PointPtr EnqueueOn(Stream& stream, const std::string& place, std::vector<PointPtr> after, const Accesses& accesses,
                     LateMachine::Work work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Reports what may not be accessed; false: something.
  bool CheckAccesses(const std::string& place, int device, bool kernel, const Accesses& accesses)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  cudaError_t EnqueueFound(cudaStream_t handle, const std::string& place, bool kernel, const Accesses& given,
                           FoundWork work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  LateMachine machine_;
  absl::Mutex mutex_;
  Options options_;
  std::array<std::atomic<cudaError_t>, kMostDevices> lost_ = {};
  std::atomic<int64_t> synchronizations_ = 0;
  std::atomic<int64_t> bytes_without_pages_ = 0;  // When they were registered.
  std::atomic<const void*> dropped_ = nullptr;
  uintptr_t next_handle_ ABSL_GUARDED_BY(mutex_) = 0x1000;  // Never one twice.
  std::map<uintptr_t, Stream> streams_ ABSL_GUARDED_BY(mutex_);
  std::map<uintptr_t, EventState> events_ ABSL_GUARDED_BY(mutex_);
  std::map<uintptr_t, uintptr_t> default_streams_ ABSL_GUARDED_BY(mutex_);  // Handles, by thread and device.
  MemoryMap memory_ ABSL_GUARDED_BY(mutex_);
  std::array<uint32_t, kMostDevices> peers_ ABSL_GUARDED_BY(mutex_) = {};  // What each may access.
  std::map<std::string, int64_t, std::less<>> calls_ ABSL_GUARDED_BY(mutex_);
  struct Fault {
    std::string function;
    int64_t left;
    cudaError_t error;
  };
  std::vector<Fault> faults_ ABSL_GUARDED_BY(mutex_);
  std::array<int64_t, kMostDevices> others_bytes_ ABSL_GUARDED_BY(mutex_) = {};  // That other processes hold.
  std::array<bool, kMostDevices> has_context_ ABSL_GUARDED_BY(mutex_) = {};
  Fault operation_fault_ ABSL_GUARDED_BY(mutex_) = {"", 0, cudaSuccess};
  std::map<const void*, std::string> sites_ ABSL_GUARDED_BY(mutex_);  // Functions by where they return to.
  std::vector<cuda_double::Launch> launches_ ABSL_GUARDED_BY(mutex_);
};

// The calling thread's.
int CurrentDevice();
void SetCurrentDevice(int device);
cudaUUID_t UuidOf(int device);
// Its last error becomes this one if it is one; returns it.
cudaError_t Remember(cudaError_t error);
cudaError_t LastError(bool clear);

// A call that asks no device: what `act` returns, unless it is to fail.
template <typename Act>
cudaError_t HostCall(const char* function, Act&& act) {
  Runtime& runtime = Runtime::Get();
  const cudaError_t error = runtime.Enter(function);
  return Remember(error == cudaSuccess ? act(runtime) : error);
}

// A call of the calling thread's device, which answers unless it is lost.
template <typename Act>
cudaError_t Call(const char* function, Act&& act) {
  return HostCall(function, [&](Runtime& runtime) {
    const cudaError_t lost = runtime.LostBy(CurrentDevice());
    return lost == cudaSuccess ? act(runtime) : lost;
  });
}

// The same of a call that orders or waits, and may be left out.
template <typename Act>
cudaError_t OrderingCall(const char* function, const void* return_address, Act&& act) {
  return Call(function,
              [&](Runtime& runtime) { return runtime.Passes(function, return_address) ? act(runtime) : cudaSuccess; });
}

}  // namespace ditserve::cuda_double

#endif  // DITSERVE_TESTS_CUDA_DOUBLE_RUNTIME_H_
