#ifndef DITSERVE_MODELS_META_RUN_H_
#define DITSERVE_MODELS_META_RUN_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "core/base/dtype.h"
#include "core/residency/lease.h"
#include "core/storage/module.h"

namespace ditserve {

// Operations on meta tensors that do `multiply_adds`, or what takes as long, tell it here.
void CountMetaWork(double multiply_adds);

// Where a tensor is; of a meta tensor, where the run that it belongs to would be: a MetaMemory's device, else the CPU.
at::DeviceType DeviceTypeOf(const at::Tensor& x);

// Gives out weights without data and records in which order they were asked for, and how much was computed in between.
class MetaLeaseSource final : public LeaseSource {
 public:
  MetaLeaseSource(const std::vector<ModuleSpec>& modules, DType computation)
      : modules_(modules), computation_(computation) {}

  void Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) override;

  const std::vector<ModuleIndex>& order() const { return order_; }
  // What was computed from when each module was asked for, in that order, until the next was or until now.
  std::vector<double> Work() const;

 private:
  const std::vector<ModuleSpec>& modules_;
  const DType computation_;
  std::vector<ModuleIndex> order_;
  std::vector<double> begun_;  // What had been computed when each was asked for.
};

// Counts the bytes that meta tensors of the calling thread would take on such a device, while it lives; they don't
// outlive it. On CUDA that is how large a TensorRegion they need, where they lie as they would there. One a thread at a
// time.
class MetaMemory {
 public:
  explicit MetaMemory(at::DeviceType device);
  ~MetaMemory();
  MetaMemory(const MetaMemory&) = delete;
  MetaMemory& operator=(const MetaMemory&) = delete;

  // Most bytes at one time so far.
  int64_t peak_bytes() const;
};

}  // namespace ditserve

#endif  // DITSERVE_MODELS_META_RUN_H_
