#ifndef DITSERVE_SERVER_ENGINE_WARM_UP_H_
#define DITSERVE_SERVER_ENGINE_WARM_UP_H_

#include <memory>

#include "absl/status/status.h"
#include "core/base/executor.h"
#include "core/devices/device.h"
#include "core/devices/tensor_memory.h"
#include "models/tensor_mover.h"

namespace ditserve {

// Runs passes of a small model on the device, in each arithmetic that it has and all numerics, whose tensors live in
// `memory`: what LibTorch and the device bring for good is there when this returns. Blocks. Errors: those of a pass.
absl::Status WarmUp(Device& device, Executor& executor, TensorMover& link, const std::shared_ptr<TensorMemory>& memory);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_WARM_UP_H_
