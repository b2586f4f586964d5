#ifndef DITSERVE_CORE_DEVICES_DEVICE_H_
#define DITSERVE_CORE_DEVICES_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/base/dtype.h"
#include "core/base/memory.h"
#include "core/devices/event.h"
#include "core/devices/host_memory.h"
#include "core/devices/tensor_memory.h"

namespace ditserve {

// Weight elements in one memory.
struct ElementSpan {
  Memory memory;
  std::byte* data;
  DType dtype;
};

// `count` elements of `source` become those of `target`, rounded through each dtype of `through` on the way
// (core/devices/cast.h).
struct Conversion {
  ElementSpan source;
  absl::Span<const DType> through;
  ElementSpan target;
  int64_t count = 0;
};

// A processor that computes, its memory, and the way between it and the host's. What is asked of it may run later, in
// any order but for that which events establish: an event is passed to what must come after it.
//
// Takes memory without asking the ledger: callers reserve first. Thread safety: thread-safe.
class Device {
 public:
  virtual ~Device() = default;

  // "cpu", "cuda:0".
  virtual const std::string& name() const = 0;

  // Its own; on a processor that computes in host memory, the part of that memory that counts as its own.
  virtual Memory memory() const = 0;

  // What it takes of that memory for itself, as long as it lives. Whoever makes it reserves that.
  virtual int64_t staging_bytes() const { return 0; }

  // What its runtime took of that memory when the device was made, where that can be told; likewise.
  virtual int64_t runtime_bytes() const { return 0; }

  // Whether operations can read host memory in place. Then each is finished when its call ends, and events of them are
  // null: what several devices read says of one at most who reads it.
  virtual bool computes_in_host_memory() const = 0;

  // Whether files can be read into `memory`.
  bool IsInHostMemory(Memory memory) const { return IsHost(memory) || computes_in_host_memory(); }

  // Whether the device can compute in this dtype at all. Errors: FailedPrecondition that says what it has and what it
  // takes.
  virtual absl::Status CanCompute(DType computation) const = 0;

  // The dtype in which operations of a profile with this computation dtype are carried out: the same, or a wider one
  // where the device is slow in it. (In float8_e4m3fn activations are bfloat16, and products alone are float8.)
  virtual DType ArithmeticDType(DType computation) const = 0;

  // The dtype of weights that operations in `arithmetic` read, if all their values are values of `values`: `values`
  // where operations convert on the way, else `arithmetic`.
  virtual DType OperandDType(DType arithmetic, DType values) const = 0;

  // Begins the conversion once `after` have passed. The event that it returns is passed when the target is written and
  // the source may be reused; null: that is so already. Of no elements it is an event behind all of `after`. Blocks
  // only where host memory is written from host memory, until `after` have passed. After an error nothing of it is
  // under way.
  virtual absl::StatusOr<EventPtr> Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) = 0;

  // Operations are what one thread, the executor's, has the device compute, in the order in which it issues them. That
  // thread calls this first: LibTorch's operations on it are the device's from then on.
  virtual absl::Status BeginOperations() = 0;

  // What operations of the calling thread make on the device they keep in `memory` from now on; null: they may make
  // nothing. Where they compute in host memory LibTorch takes what it needs of that.
  // NOLINTNEXTLINE(performance-unnecessary-value-param): who overrides it keeps it.
  virtual void ComputeIn(std::shared_ptr<TensorMemory> /*memory*/) {}

  // Operations that are issued from now on begin after the event, on the device; the thread goes on.
  virtual absl::Status ComputeAfter(const EventPtr& event) = 0;

  // How fast copies from the host's memory were of late, from when they began: bytes a second. Nullopt where they are
  // done when they are asked for, or none has been yet.
  virtual std::optional<double> CopySpeed() { return std::nullopt; }

  // The conversion as an operation, between the device's memory and the host's (pinned, where copies want that): it is
  // not held up by copies of weights that were enqueued before, as a copy would be.
  virtual absl::Status Operate(const Conversion& conversion) = 0;

  // No thread issues operations any more: LibTorch gives back what it kept for them.
  virtual void EndOperations() {}

  // Events after everything that the device was given so far, copies and operations, none for what is finished. Waits
  // for nobody, also where another thread waits for the device.
  virtual absl::StatusOr<Events> Mark() { return Events(); }

  // An event after all operations issued so far; null if they are finished. After an error they are too.
  virtual absl::StatusOr<EventPtr> RecordOperations() = 0;

  // The same, but the event knows when the device came to it; null: that is now, by the host's clock. After an error
  // operations go on.
  virtual absl::StatusOr<EventPtr> MarkOperations() = 0;

  // A range of addresses of the device's memory or the host's (which is pinned where copies want it), aligned to
  // granule_bytes and without any memory. `bytes` here and below are multiples of that. Errors: ResourceExhausted.
  virtual absl::StatusOr<std::byte*> ReserveAddresses(Memory memory, int64_t bytes) = 0;
  // Nothing of the range has memory any more.
  virtual void ReleaseAddresses(Memory memory, std::byte* begin, int64_t bytes) = 0;

  // Gives memory to addresses that have none: to all of them, or after an error to none. Its contents are undefined.
  // Errors: ResourceExhausted.
  virtual absl::Status Commit(Memory memory, std::byte* begin, int64_t bytes) = 0;
  // Takes memory from addresses that have it, all of which nothing uses any more.
  virtual void Decommit(Memory memory, std::byte* begin, int64_t bytes) = 0;

  // Gives the memory of addresses to others that have none, which costs less than to take and to give: nothing is
  // zeroed. (Host memory that is pinned is taken and given.) Nothing uses the first any more; the contents are
  // undefined. After an error neither have memory. Errors: ResourceExhausted.
  virtual absl::Status Move(Memory memory, std::byte* from, std::byte* to, int64_t bytes) = 0;

  // In what units addresses are given memory: a power of two, at least 4096.
  virtual int64_t granule_bytes(Memory memory) const = 0;

  // The device's memory, and the host's.
  virtual absl::StatusOr<MemoryStatus> MemoryStatusOf(Memory memory) const = 0;

  // Host memory that was to be pinned for copies and could not be: they are slower there.
  virtual int64_t unpinned_bytes() const { return 0; }

  // Unavailable, and why, once the device is lost: this process can't use it any more. Does not wait for operations.
  virtual absl::Status Health() = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_DEVICE_H_
