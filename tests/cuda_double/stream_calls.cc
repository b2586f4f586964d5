// The runtime's calls of streams, events and copies.
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "tests/cuda_double/runtime.h"

using namespace ditserve::cuda_double;

namespace {

using Kind = MemoryMap::Kind;

cudaError_t Synchronize(Runtime& runtime, cudaStream_t stream) {
  Runtime::Moment last;
  const cudaError_t error = runtime.LastOf(stream, last);
  return error == cudaSuccess ? runtime.WaitFor(last) : error;
}

Runtime::FoundWork CopyOf(size_t bytes) {
  return [bytes](const std::vector<std::byte*>& found) { std::memcpy(found[0], found[1], bytes); };
}

// "API synchronization behavior" of the runtime's manual: of a copy between the device and pageable memory it leaves
// open whether it is done when the call returns, so it is late as one of pinned memory; copies of the host's memory to
// the host's are done then.
cudaError_t Copy(Runtime& runtime, const char* place, void* target, const void* source, size_t bytes,
                 cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  const auto count = static_cast<int64_t>(bytes);
  const cudaError_t error =
      runtime.Enqueue(stream, place, {{target, count, true}, {source, count, false}}, CopyOf(bytes));
  const bool late = runtime.KindOf(source, count) == Kind::kDevice || runtime.KindOf(target, count) == Kind::kDevice;
  return error != cudaSuccess || late ? error : Synchronize(runtime, stream);
}

}  // namespace

// NOLINTBEGIN(readability-inconsistent-declaration-parameter-name): CUDA has names of its own for parameters.
extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  const void* const caller = __builtin_return_address(0);
  return Call(__func__, [&](Runtime& runtime) {
    return runtime.AddStream((flags & cudaStreamNonBlocking) == 0, priority, caller, stream);
  });
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const void* const caller = __builtin_return_address(0);
  return Call(__func__, [&](Runtime& runtime) {
    return runtime.AddStream((flags & cudaStreamNonBlocking) == 0, /*priority=*/0, caller, stream);
  });
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return Call(__func__, [&](Runtime& runtime) { return runtime.RemoveStream(stream); });
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return Call(__func__, [&](Runtime& runtime) {
    Runtime::Moment last;
    const cudaError_t error = runtime.LastOf(stream, last);
    return error == cudaSuccess ? runtime.Ask(last) : error;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return OrderingCall(__func__, __builtin_return_address(0),
                      [&](Runtime& runtime) { return Synchronize(runtime, stream); });
}

cudaError_t cudaDeviceSynchronize() {
  return OrderingCall(__func__, __builtin_return_address(0), [&](Runtime& runtime) {
    for (const Runtime::Moment& last : runtime.LastOfAll()) {
      const cudaError_t error = runtime.WaitFor(last);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/) {
  return OrderingCall(__func__, __builtin_return_address(0),
                      [&](Runtime& runtime) { return runtime.Order(stream, event); });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t*, const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  *status = cudaStreamCaptureStatusNone;
  if (id != nullptr) *id = 0;
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return Call(__func__, [&](Runtime& runtime) {
    return runtime.Enqueue(stream, "cudaLaunchHostFunc", {},
                           [function, data](const std::vector<std::byte*>&) { function(data); });
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  const void* const caller = __builtin_return_address(0);
  return Call(__func__, [&](Runtime& runtime) { return runtime.AddEvent(caller, flags, event); });
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return Call(__func__, [&](Runtime& runtime) { return runtime.RemoveEvent(event); });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return OrderingCall(__func__, __builtin_return_address(0),
                      [&](Runtime& runtime) { return runtime.Record(event, stream); });
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned /*flags*/) {
  return OrderingCall(__func__, __builtin_return_address(0),
                      [&](Runtime& runtime) { return runtime.Record(event, stream); });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return Call(__func__, [&](Runtime& runtime) {
    Runtime::Moment record;
    const cudaError_t error = runtime.RecordOf(event, record);
    return error == cudaSuccess ? runtime.Ask(record) : error;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return OrderingCall(__func__, __builtin_return_address(0), [&](Runtime& runtime) {
    Runtime::Moment record;
    const cudaError_t error = runtime.RecordOf(event, record);
    return error == cudaSuccess ? runtime.WaitFor(record) : error;
  });
}

// In the machine's own time.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t earlier, cudaEvent_t later) {
  return Call(__func__, [&](Runtime& runtime) {
    Runtime::Moment from, to;
    for (const auto& [event, moment] : {std::pair(earlier, &from), std::pair(later, &to)}) {
      const cudaError_t known = runtime.TimedRecordOf(event, *moment);
      const cudaError_t passed = known == cudaSuccess ? runtime.Ask(*moment) : known;
      if (passed != cudaSuccess) return passed;
    }
    const absl::Duration elapsed = runtime.machine().PassesAt(to.point) - runtime.machine().PassesAt(from.point);
    *milliseconds = static_cast<float>(absl::ToDoubleMilliseconds(elapsed));
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return Call(__func__,
              [&](Runtime& runtime) { return Copy(runtime, "cudaMemcpyAsync", target, source, bytes, stream); });
}

// Returns when the copy is done, but from device to device, and from pageable memory, which is staged.
cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind) {
  return Call(__func__, [&](Runtime& runtime) {
    const auto count = static_cast<int64_t>(bytes);
    const Kind from = runtime.KindOf(source, count), to = runtime.KindOf(target, count);
    const cudaError_t error = Copy(runtime, "cudaMemcpy", target, source, bytes, cudaStreamLegacy);
    const bool late = to == Kind::kDevice && from != Kind::kPinned;
    return error != cudaSuccess || late ? error : Synchronize(runtime, cudaStreamLegacy);
  });
}

cudaError_t cudaMemcpyPeerAsync(void* target, int, const void* source, int, size_t bytes, cudaStream_t stream) {
  return Call(__func__,
              [&](Runtime& runtime) { return Copy(runtime, "cudaMemcpyPeerAsync", target, source, bytes, stream); });
}

cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream) {
  return Call(__func__, [&](Runtime& runtime) {
    return runtime.Enqueue(stream, "cudaMemsetAsync", {{target, static_cast<int64_t>(bytes), true}},
                           [=](const std::vector<std::byte*>& found) { std::memset(found[0], value, bytes); });
  });
}
cudaError_t cudaMemset(void* target, int value, size_t bytes) {
  return cudaMemsetAsync(target, value, bytes, cudaStreamLegacy);
}

}  // extern "C"
// NOLINTEND(readability-inconsistent-declaration-parameter-name)
