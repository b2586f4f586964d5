#include "models/weights.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <utility>

#include "models/errors.h"

namespace ditserve {

at::ScalarType ScalarTypeOf(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return at::kBFloat16;
    case DType::kFloat16:
      return at::kHalf;
    case DType::kFloat8E4M3:
      return at::kFloat8_e4m3fn;
    default:
      return at::kFloat;
  }
}

DType DTypeOf(at::ScalarType type) {
  switch (type) {
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    case at::kFloat8_e4m3fn:
      return DType::kFloat8E4M3;
    default:
      return DType::kFloat32;
  }
}

Weights::Weights(Lease lease, const ModuleSpec& module, at::Device device) : lease_(std::move(lease)) {
  for (size_t i = 0; i < module.parameters.size(); ++i) {
    const LeasedTensor& leased = lease_.tensors()[i];
    const auto options = at::TensorOptions().dtype(ScalarTypeOf(leased.dtype)).device(device);
    if (device.is_meta()) {
      // A single element, expanded: weights must not count as activations.
      tensors_.push_back(at::empty({1}, options).expand(module.parameters[i].read_shape()));
    } else {
      // Operations only read; ATen has no tensor of const elements.
      void* const data = const_cast<std::byte*>(leased.data);
      tensors_.push_back(at::from_blob(data, module.parameters[i].read_shape(), options));
    }
  }
}

Weights WeightSource::Awaiter::await_resume() {
  absl::StatusOr<Lease> lease = CallbackAwaiter::await_resume();
  if (!lease.ok()) throw StatusError(lease.status());
  return Weights(*std::move(lease), source_.modules_[module_], source_.device_);
}

}  // namespace ditserve
