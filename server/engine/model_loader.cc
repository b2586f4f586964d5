#include "server/engine/model_loader.h"

#include <spdlog/spdlog.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "models/checkpoint_config.h"
#include "models/errors.h"

namespace ditserve {
namespace {

absl::StatusOr<QwenImageDiTConfig> ConfigOf(const Checkpoint& checkpoint, const std::string& name) {
  if (!checkpoint.config_json().empty()) return ParseQwenImageDiTConfig(checkpoint.config_json());
  DITSERVE_ASSIGN_OR_RETURN(QwenImageDiTConfig config, ConfigOfTensors(checkpoint.tensors()));
  spdlog::warn(
      "model '{}': no config.json; its tensors are those of Qwen-Image and of the Edit models, and it is served "
      "without reference images",
      name);
  return config;
}

absl::StatusOr<OpenedModel> Open(const ModelSource& source) {
  DITSERVE_ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(source.path));
  DITSERVE_ASSIGN_OR_RETURN(QwenImageDiTConfig config, ConfigOf(*checkpoint, source.name));
  config.numerics = source.numerics;
  OpenedModel model;
  DITSERVE_RETURN_IF_ERROR(CatchStatus([&] { model.dit = std::make_unique<QwenImageDiT>(config); }));
  model.stored_bytes = checkpoint->size_bytes();
  DITSERVE_ASSIGN_OR_RETURN(model.weights,
                            ModelWeights::Bind(source.name, model.dit->modules(), std::move(checkpoint)));
  return model;
}

}  // namespace

absl::StatusOr<OpenedModel> OpenModel(const ModelSource& source) {
  absl::StatusOr<OpenedModel> model = Open(source);
  if (model.ok()) return model;
  return absl::Status(model.status().code(),
                      absl::StrCat("model '", source.name, "' at ", source.path, ": ", model.status().message()));
}

absl::StatusOr<OpenedModel> DescribeQwenImage() {
  OpenedModel model;
  DITSERVE_RETURN_IF_ERROR(CatchStatus([&] { model.dit = std::make_unique<QwenImageDiT>(QwenImageDiTConfig()); }));
  std::vector<StoredTensor> tensors;
  for (const ModuleSpec& module : model.dit->modules()) {
    for (const ParameterSpec& parameter : module.parameters) {
      const int64_t bytes = ElementCount(parameter.shape) * SizeOf(DType::kBFloat16);
      tensors.push_back({absl::StrCat(module.path, ".", parameter.name), DType::kBFloat16, parameter.shape,
                         /*shard=*/0, model.stored_bytes, bytes});
      model.stored_bytes += bytes;
    }
  }
  DITSERVE_ASSIGN_OR_RETURN(
      model.weights, ModelWeights::Bind("Qwen-Image", model.dit->modules(), Checkpoint::Describe(std::move(tensors))));
  return model;
}

}  // namespace ditserve
