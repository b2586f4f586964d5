#ifndef DITSERVE_MODELS_CONFIG_H_
#define DITSERVE_MODELS_CONFIG_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ditserve {

// Whose arithmetic a model follows where the two published implementations differ: the MLP's activation
// (x * sigmoid(1.702 x) or tanh GELU) and a few roundings that only show below float32.
enum class Numerics : uint8_t {
  kDiffSynth,  // DiffSynth-Studio 2.1.12, models/qwen_image_dit.py
  kDiffusers,  // diffusers 0.42.1, transformers/transformer_qwenimage.py
};

absl::string_view Name(Numerics numerics);
std::optional<Numerics> NumericsFromName(absl::string_view name);

// Shape of a QwenImageDiT. Fields are named as in diffusers' config.json; the defaults are Qwen-Image's.
struct QwenImageDiTConfig {
  int64_t num_layers = 60;
  int64_t attention_head_dim = 128;
  int64_t num_attention_heads = 24;
  int64_t joint_attention_dim = 3584;
  int64_t in_channels = 64;   // Of a patch: 16 latent channels x 2 x 2.
  int64_t out_channels = 16;  // Latent channels.
  int64_t patch_size = 2;
  std::array<int64_t, 3> axes_dims_rope = {16, 56, 56};  // frame, height, width; sum = attention_head_dim.
  Numerics numerics = Numerics::kDiffSynth;

  int64_t width() const { return num_attention_heads * attention_head_dim; }
};

// Reads a diffusers config.json. Fields that change the model are obeyed or, if this server can't, refused by name;
// values are checked against each other. Does not set `numerics`. Errors: InvalidArgument.
absl::StatusOr<QwenImageDiTConfig> ParseQwenImageDiTConfig(absl::string_view config_json);

// The config.json that ParseQwenImageDiTConfig reads back.
std::string ToConfigJson(const QwenImageDiTConfig& config);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_CONFIG_H_
