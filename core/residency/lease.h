#ifndef DITSERVE_CORE_RESIDENCY_LEASE_H_
#define DITSERVE_CORE_RESIDENCY_LEASE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/base/dtype.h"
#include "core/storage/module.h"

namespace ditserve {

// One parameter as an operation reads it: row-major elements in memory the device computes from.
struct LeasedTensor {
  const std::byte* data;
  DType dtype;
};

// Of a module: a weight and perhaps a bias.
using LeasedTensors = absl::InlinedVector<LeasedTensor, 2>;

// The right to use a module's weights; while it is held the copy stays where it is.
//
// Ownership: must not outlive the LeaseSource that gave it. Thread safety: thread-compatible.
class Lease {
 public:
  // `tensors` in the order of ModuleSpec::parameters; `release` is called once, when the lease ends.
  Lease(LeasedTensors tensors, absl::AnyInvocable<void() &&> release)
      : tensors_(std::move(tensors)), release_(std::move(release)) {}
  Lease(Lease&& other) noexcept
      : tensors_(std::move(other.tensors_)), release_(std::exchange(other.release_, nullptr)) {}
  Lease& operator=(Lease&&) = delete;
  ~Lease() {
    if (release_) std::move(release_)();
  }

  absl::Span<const LeasedTensor> tensors() const { return tensors_; }

 private:
  LeasedTensors tensors_;
  absl::AnyInvocable<void() &&> release_;
};

// Gives out a request's weights in execution order. What a model's forward sees of residency.
//
// Thread safety: called on the executor only.
class LeaseSource {
 public:
  virtual ~LeaseSource() = default;

  // Calls `done` once on the executor with the module's lease, or with why there is none: at once, before Acquire
  // returns, if the weights are there; later otherwise. One acquisition at a time.
  virtual void Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_LEASE_H_
