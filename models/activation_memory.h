#ifndef DITSERVE_MODELS_ACTIVATION_MEMORY_H_
#define DITSERVE_MODELS_ACTIVATION_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace ditserve {

// Host memory for the activations of one pass: never more than was reserved for it, nor much more than was in use at
// one time; and what one operation leaves the next one gets, because writing to fresh memory costs more than many an
// operation.
//
// LibTorch's allocator for the CPU asks it while a Scope is alive on the thread, once InstallAllocator was called.
//
// Ownership: shared with the tensors that live in it. Thread safety: thread-safe.
class ActivationMemory {
 public:
  explicit ActivationMemory(int64_t limit_bytes) : limit_bytes_(limit_bytes) {}
  ~ActivationMemory();

  // Makes LibTorch ask. LibTorch reads its allocator without a lock: to be called before threads use it.
  static void InstallAllocator();

  // While it lives, tensors that the calling thread creates on the CPU take their memory from `memory`.
  class Scope {
   public:
    explicit Scope(const std::shared_ptr<ActivationMemory>& memory);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    const std::shared_ptr<ActivationMemory>* outer_;
  };

  // Memory of this alignment. Throws c10::OutOfMemoryError where the limit would be exceeded.
  static constexpr size_t kAlignment = 64;
  std::byte* Allocate(size_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void Free(std::byte* data, size_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  // Ends the pass: keeps no memory for further tensors. Those that live on keep theirs.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);

  // Most bytes in use at one time so far.
  int64_t peak_bytes() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void ReleaseSpares(int64_t at_most_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t limit_bytes_;
  mutable absl::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::multimap<size_t, std::byte*> spares_ ABSL_GUARDED_BY(mutex_);  // By their size.
  int64_t spare_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t peak_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_MODELS_ACTIVATION_MEMORY_H_
