#ifndef DITSERVE_CORE_DEVICES_DEVICE_H_
#define DITSERVE_CORE_DEVICES_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/base/dtype.h"
#include "core/base/memory.h"
#include "core/devices/host_memory.h"

namespace ditserve {

// A point in the device's work that can be waited for.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;
  // Blocks until the work up to the event is finished.
  virtual absl::Status Wait() = 0;
};

// Weight elements in one memory.
struct ElementSpan {
  Memory memory;
  std::byte* data;
  DType dtype;
};

// The processor that computes, and its memory.
//
// Allocates without asking the ledger: callers reserve first. Thread safety: thread-safe.
class Device {
 public:
  virtual ~Device() = default;

  // "cpu", "cuda:0".
  virtual const std::string& name() const = 0;

  // Whether operations can read host memory in place.
  virtual bool computes_in_host_memory() const = 0;

  // Whether files can be read into `memory`.
  bool IsInHostMemory(Memory memory) const { return memory == Memory::kHost || computes_in_host_memory(); }

  // The dtype in which operations of a profile with this computation dtype are carried out: the same, or a wider one
  // where the device is slow in it.
  virtual DType ArithmeticDType(DType computation) const = 0;

  // The dtype of weights that operations in `arithmetic` read, if all their values are values of `values`: `values`
  // where operations convert on the way, else `arithmetic`.
  virtual DType OperandDType(DType arithmetic, DType values) const = 0;

  // Memory for weights or staging, aligned to 4096; host memory is pinned where copies want it.
  // Errors: ResourceExhausted.
  virtual absl::StatusOr<std::byte*> Allocate(Memory memory, int64_t bytes) = 0;
  virtual void Free(Memory memory, std::byte* data, int64_t bytes) = 0;

  // Converts `count` elements, rounding through each dtype of `through` on the way (core/devices/cast.h). Returns when
  // `source` may be reused and `target` may be read by operations and by later conversions.
  virtual absl::Status Convert(const ElementSpan& source, absl::Span<const DType> through, const ElementSpan& target,
                               int64_t count) = 0;

  // An event after all operations issued so far by the calling thread; null if they are finished.
  virtual absl::StatusOr<std::unique_ptr<DeviceEvent>> RecordOperations() = 0;

  // The device's memory, and the host's.
  virtual absl::StatusOr<MemoryStatus> MemoryStatusOf(Memory memory) const = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_DEVICE_H_
