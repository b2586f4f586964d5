#ifndef DITSERVE_SERVER_ENGINE_MODEL_LOADER_H_
#define DITSERVE_SERVER_ENGINE_MODEL_LOADER_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "core/storage/model_weights.h"
#include "models/qwen_image_dit.h"
#include "server/engine/model_source.h"

namespace ditserve {

// A model, and where its weights stand; none of them was read.
struct OpenedModel {
  std::unique_ptr<QwenImageDiT> dit;
  std::unique_ptr<ModelWeights> weights;
  int64_t stored_bytes = 0;
};

// Opens the checkpoint and checks every tensor. Errors: as Checkpoint::Open, ParseQwenImageDiTConfig and
// ModelWeights::Bind, naming the model and its path.
absl::StatusOr<OpenedModel> OpenModel(const ModelSource& source);

// Qwen-Image as it is published, in bfloat16: its shapes and sizes, without a checkpoint.
absl::StatusOr<OpenedModel> DescribeQwenImage();

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_MODEL_LOADER_H_
