#ifndef DITSERVE_MODELS_WEIGHTS_H_
#define DITSERVE_MODELS_WEIGHTS_H_

#include <ATen/core/Tensor.h>

#include <coroutine>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/callback_awaiter.h"
#include "core/base/dtype.h"
#include "core/residency/lease.h"
#include "core/storage/module.h"

namespace ditserve {

// LibTorch's name of a weight dtype, and ours.
at::ScalarType ScalarTypeOf(DType dtype);
DType DTypeOf(at::ScalarType type);

// A leased module's parameters as tensors. They are valid as long as this lives.
class Weights {
 public:
  Weights(Lease lease, const ModuleSpec& module, at::Device device);

  const at::Tensor& weight() const { return tensors_[0]; }
  const at::Tensor& bias() const { return tensors_[1]; }

 private:
  Lease lease_;
  std::vector<at::Tensor> tensors_;
};

// Awaits leases: `co_await weights[module]` is the module's Weights, or throws the StatusError of a failed lease.
class WeightSource {
 public:
  WeightSource(LeaseSource& leases, const std::vector<ModuleSpec>& modules, at::Device device)
      : leases_(leases), modules_(modules), device_(device) {}

  class Awaiter : public CallbackAwaiter<absl::StatusOr<Lease>> {
   public:
    Awaiter(WeightSource& source, ModuleIndex module) : source_(source), module_(module) {}
    // Does not suspend if the lease is given at once.
    bool await_suspend(std::coroutine_handle<> awaiter) {
      source_.leases_.Acquire(module_, CallBack(awaiter));
      return Suspends();
    }
    Weights await_resume();

   private:
    WeightSource& source_;
    const ModuleIndex module_;
  };

  Awaiter operator[](ModuleIndex module) { return Awaiter(*this, module); }

 private:
  LeaseSource& leases_;
  const std::vector<ModuleSpec>& modules_;
  const at::Device device_;
};

}  // namespace ditserve

#endif  // DITSERVE_MODELS_WEIGHTS_H_
