#ifndef DITSERVE_MODELS_TENSOR_MOVER_H_
#define DITSERVE_MODELS_TENSOR_MOVER_H_

#include <ATen/core/Tensor.h>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"

namespace ditserve {

// Takes tensors to the device that computes, and back.
class TensorMover {
 public:
  virtual ~TensorMover() = default;

  using Done = absl::AnyInvocable<void(absl::Status) &&>;

  // Give `to` the values of `from`, in its own dtype; both are contiguous and of one shape. What is read or written on
  // the device is in the order of operations. Call `done` once, on the executor, maybe at once: when operations may be
  // issued that read `to`, or when the host has its values.
  virtual void ToDevice(const at::Tensor& from, const at::Tensor& to, Done done) = 0;
  virtual void ToHost(const at::Tensor& from, const at::Tensor& to, Done done) = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_MODELS_TENSOR_MOVER_H_
