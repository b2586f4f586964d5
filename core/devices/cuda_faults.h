#ifndef DITSERVE_CORE_DEVICES_CUDA_FAULTS_H_
#define DITSERVE_CORE_DEVICES_CUDA_FAULTS_H_

#include <cuda_runtime_api.h>

#include <atomic>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

namespace ditserve {

// One device's errors, and whether one of them was the last: what CUDA says a process can only end after. From then on
// the device is lost.
//
// Thread safety: thread-safe.
class CudaFaults {
 public:
  explicit CudaFaults(int device) : device_(device) {}

  // The calling thread's calls are this device's from now on: those that name a stream or an event too, which would
  // make a context on another one. Errors: as StatusOf.
  absl::Status Enter();

  // "what: why". Errors: ResourceExhausted where memory was refused, Unavailable where the device is lost, else
  // Internal.
  absl::Status StatusOf(cudaError_t error, absl::string_view what) ABSL_LOCKS_EXCLUDED(mutex_);

  // Waits for the device by the call `wait`: again, where that fails while the device is there, for then it has not
  // waited. Where it fails once more nobody can know what is under way, and the device is lost. Errors: Unavailable.
  absl::Status WaitBy(absl::FunctionRef<cudaError_t()> wait, absl::string_view what) ABSL_LOCKS_EXCLUDED(mutex_);

  // Unavailable, and why, once the device is lost.
  absl::Status Loss() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Returns why it was lost first.
  absl::Status Lose(absl::string_view why) ABSL_LOCKS_EXCLUDED(mutex_);

  const int device_;
  std::atomic<bool> lost_ = false;
  mutable absl::Mutex mutex_;
  absl::Status loss_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_CUDA_FAULTS_H_
