#include "models/checkpoint_config.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

// What ComfyUI's files of one model put before every name.
constexpr absl::string_view kSingleFilePrefix = "model.diffusion_model.";

// How the names of tensors begin that other models of the family have.
struct Mark {
  absl::string_view tensor;
  absl::string_view model;
};
constexpr Mark kOtherModels[] = {
    {"__index_timestep_zero__", "Qwen-Image-Edit-2511 (zero_cond_t)"},
    {"time_text_embed.addition_t_embedding.", "Qwen-Image-Layered (use_additional_t_cond)"},
    {"txt_in.text_norm.", "Qwen-Image-2.1"},
    {"controlnet_blocks.", "a ControlNet"},
};

absl::Status Refusal(const std::string& found) {
  return absl::InvalidArgumentError(absl::StrCat("no config.json, and ", found));
}

absl::Status CheckNames(absl::Span<const StoredTensor> tensors) {
  for (const StoredTensor& tensor : tensors) {
    for (const Mark& other : kOtherModels) {
      if (!absl::StartsWith(absl::StripPrefix(tensor.name, kSingleFilePrefix), other.tensor)) continue;
      return Refusal(absl::StrCat("the tensor '", tensor.name, "' belongs to ", other.model, ", which is not served"));
    }
  }
  return absl::OkStatus();
}

// The shape of tensor `name`, of as many dimensions as `meaning`.
absl::StatusOr<std::vector<int64_t>> ShapeOf(absl::Span<const StoredTensor> tensors, absl::string_view name,
                                             const std::vector<absl::string_view>& meaning) {
  const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.name == name; });
  const std::string expected = absl::StrCat("[", absl::StrJoin(meaning, ", "), "]");
  if (found == tensors.end()) {
    return Refusal(absl::StrCat("no tensor '", name, "' of shape ", expected, " as a QwenImageDiT has"));
  }
  if (found->shape.size() == meaning.size()) return found->shape;
  return Refusal(
      absl::StrCat("the tensor '", name, "' has shape [", absl::StrJoin(found->shape, ", "), "], expected ", expected));
}

int64_t CountBlocks(absl::Span<const StoredTensor> tensors) {
  constexpr int64_t kMaxBlocks = 1000;
  int64_t blocks = 1;
  for (const StoredTensor& tensor : tensors) {
    const std::vector<std::string> parts = absl::StrSplit(tensor.name, absl::MaxSplits('.', 2));
    int64_t index = 0;
    if (parts.size() == 3 && parts[0] == "transformer_blocks" && absl::SimpleAtoi(parts[1], &index)) {
      blocks = std::max(blocks, std::min(index, kMaxBlocks - 1) + 1);
    }
  }
  return blocks;
}

}  // namespace

absl::StatusOr<QwenImageDiTConfig> ConfigOfTensors(absl::Span<const StoredTensor> tensors) {
  DITSERVE_RETURN_IF_ERROR(CheckNames(tensors));
  DITSERVE_ASSIGN_OR_RETURN(const auto patches, ShapeOf(tensors, "img_in.weight", {"width", "in_channels"}));
  DITSERVE_ASSIGN_OR_RETURN(const auto prompt, ShapeOf(tensors, "txt_in.weight", {"width", "joint_attention_dim"}));
  DITSERVE_ASSIGN_OR_RETURN(const auto head,
                            ShapeOf(tensors, "transformer_blocks.0.attn.norm_q.weight", {"attention_head_dim"}));
  QwenImageDiTConfig config;
  // No tensor says how the channels of a head are shared among the axes, nor how large a patch is.
  if (head[0] != config.attention_head_dim || patches[1] != config.in_channels) {
    return Refusal(absl::StrCat("heads of ", head[0], " channels and patches of ", patches[1], ", expected ",
                                config.attention_head_dim, " and ", config.in_channels, " as Qwen-Image has"));
  }
  if (patches[0] < head[0] || patches[0] % head[0] != 0) {
    return Refusal(absl::StrCat("a width of ", patches[0], ", expected a multiple of ", head[0]));
  }
  config.num_attention_heads = patches[0] / head[0];
  config.joint_attention_dim = prompt[1];
  config.num_layers = CountBlocks(tensors);
  // The same limits as for a configuration that is read.
  return ParseQwenImageDiTConfig(ToConfigJson(config));
}

}  // namespace ditserve
