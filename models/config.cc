#include "models/config.h"

#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/storage/json_reader.h"
#include "nlohmann/json.hpp"

namespace ditserve {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxLayers = 1000;
constexpr int kMaxDepth = 32;           // Of values in values: a message that shows one goes as deep.
constexpr int64_t kMaxWidth = 1 << 16;  // Of any dimension: no product of two or three of them overflows.

absl::Status Wrong(absl::string_view key, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("config.json: ", key, ": ", what));
}

// A value as a message may show it: ASCII and short.
std::string Shown(const Json& value) { return value.dump(-1, ' ', /*ensure_ascii=*/true).substr(0, 64); }

// Nlohmann's parser keeps the last of duplicate keys silently.
absl::StatusOr<Json> ParseObject(absl::string_view text) {
  std::set<std::string> keys;
  std::string duplicate;
  bool too_deep = false;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth) {
      too_deep = true;
      return false;  // Is not kept.
    }
    if (depth == 1 && event == Json::parse_event_t::key && !keys.insert(parsed.get<std::string>()).second) {
      duplicate = parsed.get<std::string>();
    }
    return true;
  };
  Json json = Json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (too_deep) return absl::InvalidArgumentError(absl::StrCat("config.json: more than ", kMaxDepth, " values deep"));
  if (!duplicate.empty()) return Wrong(Printable(duplicate), "the key stands twice");
  if (!json.is_object()) return absl::InvalidArgumentError("config.json: not a JSON object");
  return json;
}

absl::Status ReadInteger(const Json& json, const char* key, int64_t max, int64_t* value) {
  if (!json.contains(key)) return absl::OkStatus();
  const Json& field = json[key];
  // A number beyond int64_t reads as negative.
  if (!field.is_number_integer() || field.get<int64_t>() < 1 || field.get<int64_t>() > max) {
    return Wrong(key, absl::StrCat("expected an integer from 1 to ", max, ", found ", Shown(field)));
  }
  *value = field.get<int64_t>();
  return absl::OkStatus();
}

absl::Status ReadAxes(const Json& json, QwenImageDiTConfig& config) {
  if (!json.contains("axes_dims_rope")) return absl::OkStatus();
  const Json& axes = json["axes_dims_rope"];
  if (!axes.is_array() || axes.size() != config.axes_dims_rope.size()) {
    return Wrong("axes_dims_rope", "expected three integers");
  }
  for (size_t i = 0; i < axes.size(); ++i) {
    if (!axes[i].is_number_unsigned() || axes[i].get<uint64_t>() > static_cast<uint64_t>(kMaxWidth)) {
      return Wrong("axes_dims_rope", "expected three integers");
    }
    config.axes_dims_rope[i] = axes[i].get<int64_t>();
  }
  return absl::OkStatus();
}

absl::Status CheckKeys(const Json& json) {
  static const std::set<absl::string_view> obeyed = {"num_layers",          "attention_head_dim", "num_attention_heads",
                                                     "joint_attention_dim", "in_channels",        "out_channels",
                                                     "patch_size",          "axes_dims_rope"};
  static const std::set<absl::string_view> must_be_off = {"guidance_embeds", "zero_cond_t", "use_additional_t_cond",
                                                          "use_layer3d_rope"};
  static const std::set<absl::string_view> without_effect = {"pooled_projection_dim"};
  for (const auto& [key, value] : json.items()) {
    if (absl::StartsWith(key, "_") || obeyed.contains(key) || without_effect.contains(key)) continue;
    if (!must_be_off.contains(key)) {
      return Wrong(Printable(key), "unknown; it may change the model in a way that this server does not know");
    }
    if (value.is_boolean() && !value.get<bool>()) continue;
    if (!value.is_null()) return Wrong(key, "this variant of the model is not supported; only false is");
  }
  return absl::OkStatus();
}

absl::Status CheckConsistent(const QwenImageDiTConfig& config) {
  int64_t sum = 0;
  for (const int64_t axis : config.axes_dims_rope) {
    if (axis < 2 || axis % 2 != 0) {
      return Wrong("axes_dims_rope", absl::StrCat("expected even numbers from 2, found ", axis));
    }
    sum += axis;
  }
  if (sum != config.attention_head_dim) {
    return Wrong("axes_dims_rope",
                 absl::StrCat("add up to ", sum, ", expected attention_head_dim, ", config.attention_head_dim));
  }
  if (config.width() > kMaxWidth) {
    return Wrong("num_attention_heads", absl::StrCat("times attention_head_dim is more than ", kMaxWidth));
  }
  const int64_t patch_channels = config.out_channels * config.patch_size * config.patch_size;
  if (config.patch_size != 2) return Wrong("patch_size", absl::StrCat("expected 2, found ", config.patch_size));
  if (config.in_channels != patch_channels) {
    return Wrong("in_channels", absl::StrCat("expected out_channels x patch_size^2, ", patch_channels, ", found ",
                                             config.in_channels));
  }
  return absl::OkStatus();
}

}  // namespace

absl::string_view Name(Numerics numerics) { return numerics == Numerics::kDiffusers ? "diffusers" : "diffsynth"; }

std::optional<Numerics> NumericsFromName(absl::string_view name) {
  if (name == "diffsynth") return Numerics::kDiffSynth;
  if (name == "diffusers") return Numerics::kDiffusers;
  return std::nullopt;
}

absl::StatusOr<QwenImageDiTConfig> ParseQwenImageDiTConfig(absl::string_view config_json) {
  DITSERVE_ASSIGN_OR_RETURN(const Json json, ParseObject(config_json));
  if (json.contains("_class_name") && json["_class_name"] != "QwenImageTransformer2DModel") {
    return Wrong("_class_name",
                 absl::StrCat("expected QwenImageTransformer2DModel, found ", Shown(json["_class_name"])));
  }
  DITSERVE_RETURN_IF_ERROR(CheckKeys(json));
  QwenImageDiTConfig config;
  DITSERVE_RETURN_IF_ERROR(ReadInteger(json, "num_layers", kMaxLayers, &config.num_layers));
  DITSERVE_RETURN_IF_ERROR(ReadInteger(json, "attention_head_dim", kMaxWidth, &config.attention_head_dim));
  DITSERVE_RETURN_IF_ERROR(ReadInteger(json, "num_attention_heads", kMaxWidth, &config.num_attention_heads));
  DITSERVE_RETURN_IF_ERROR(ReadInteger(json, "joint_attention_dim", kMaxWidth, &config.joint_attention_dim));
  DITSERVE_RETURN_IF_ERROR(ReadInteger(json, "in_channels", kMaxWidth, &config.in_channels));
  DITSERVE_RETURN_IF_ERROR(ReadInteger(json, "patch_size", kMaxWidth, &config.patch_size));
  config.out_channels = json.contains("out_channels") && json["out_channels"].is_null() ? config.in_channels : 16;
  if (!json.contains("out_channels") || !json["out_channels"].is_null()) {
    DITSERVE_RETURN_IF_ERROR(ReadInteger(json, "out_channels", kMaxWidth, &config.out_channels));
  }
  DITSERVE_RETURN_IF_ERROR(ReadAxes(json, config));
  DITSERVE_RETURN_IF_ERROR(CheckConsistent(config));
  return config;
}

std::string ToConfigJson(const QwenImageDiTConfig& config) {
  nlohmann::ordered_json json;
  json["_class_name"] = "QwenImageTransformer2DModel";
  json["attention_head_dim"] = config.attention_head_dim;
  json["axes_dims_rope"] = config.axes_dims_rope;
  json["guidance_embeds"] = false;
  json["in_channels"] = config.in_channels;
  json["joint_attention_dim"] = config.joint_attention_dim;
  json["num_attention_heads"] = config.num_attention_heads;
  json["num_layers"] = config.num_layers;
  json["out_channels"] = config.out_channels;
  json["patch_size"] = config.patch_size;
  return json.dump(2) + "\n";
}

}  // namespace ditserve
