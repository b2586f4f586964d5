#ifndef DITSERVE_MODELS_CHECKPOINT_CONFIG_H_
#define DITSERVE_MODELS_CHECKPOINT_CONFIG_H_

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/storage/checkpoint.h"
#include "models/config.h"

namespace ditserve {

// The shape of a QwenImageDiT whose checkpoint comes without a config.json, from the names and shapes of its tensors.
//
// Qwen-Image, Qwen-Image-Edit, -2509 and -2511 hold the same tensors, so they are not told apart. Nor need they be:
// they differ in what reference images bring, and a pass here has none (with zero_cond_t, 2511's, only their tokens are
// modulated otherwise).
//
// Errors: InvalidArgument for another model, naming the tensor that tells so (Qwen-Image-Layered, an Edit-2511 that is
// marked, Qwen-Image-2.1, ControlNets), or whose shape can't be read.
absl::StatusOr<QwenImageDiTConfig> ConfigOfTensors(absl::Span<const StoredTensor> tensors);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_CHECKPOINT_CONFIG_H_
