#ifndef DITSERVE_CORE_DEVICES_TENSOR_MEMORY_H_
#define DITSERVE_CORE_DEVICES_TENSOR_MEMORY_H_

#include <cstddef>
#include <cstdint>

namespace ditserve {

// Where a device's operations keep what they make. All of a device's operations come one after the other: what one
// leaves the next may have, without waiting.
//
// Ownership: shared with what is in it. Thread safety: thread-safe.
class TensorMemory {
 public:
  virtual ~TensorMemory() = default;

  // At least `bytes`, which are more than 0, aligned as CUDA's allocators align; null if there are no more.
  virtual std::byte* Allocate(int64_t bytes) = 0;
  virtual void Free(std::byte* data) = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_TENSOR_MEMORY_H_
