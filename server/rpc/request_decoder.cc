#include "server/rpc/request_decoder.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "core/base/error_details.h"
#include "core/base/quoted.h"
#include "core/base/status_macros.h"
#include "server/rpc/tensor_codec.h"
#include "server/rpc/tensor_fields.h"

namespace ditserve {
namespace {

constexpr int64_t kLatentPixels = 8;  // Pixels of an image that a latent stands for, a side.
constexpr int64_t kSideStep = 16;     // A patch of 2 x 2 latents.
constexpr int64_t kMaxTextTokens = 1024;
constexpr int64_t kMaxPlannedRiders = 64;

// `"a", "b"`.
template <typename Items>
std::string QuotedNames(const Items& items) {
  return absl::StrJoin(items, ", ",
                       [](std::string* out, const auto& item) { absl::StrAppend(out, "\"", item.name, "\""); });
}

// What the model's forward takes; a pipeline counts from 0 to 1000.
absl::Status CheckTimestep(const at::Tensor& timestep) {
  for (int64_t i = 0; i < timestep.numel(); ++i) {
    const double value = timestep[i].item<double>();
    if (value >= 0 && value <= 1) continue;
    return FieldError("timestep.data",
                      absl::StrCat("element ", i, " is ", value, ", expected 0 to 1 (a pipeline's timestep / 1000)"));
  }
  return absl::OkStatus();
}

// A key that is left out is an empty string.
std::optional<std::string> Given(const std::string& value) {
  return value.empty() ? std::nullopt : std::optional<std::string>(value);
}

VramConfig FromProto(const v1::VramConfig& proto) {
  VramConfig config;
  config.offload_dtype = Given(proto.offload_dtype());
  config.offload_device = Given(proto.offload_device());
  config.onload_dtype = Given(proto.onload_dtype());
  config.onload_device = Given(proto.onload_device());
  config.preparing_dtype = Given(proto.preparing_dtype());
  config.preparing_device = Given(proto.preparing_device());
  config.computation_dtype = Given(proto.computation_dtype());
  config.computation_device = Given(proto.computation_device());
  config.module_map.insert(proto.module_map().begin(), proto.module_map().end());
  return config;
}

absl::StatusOr<v1::OutputLayout> DecodeLayout(v1::OutputLayout layout) {
  switch (layout) {
    case v1::OUTPUT_LAYOUT_UNSPECIFIED:
    case v1::OUTPUT_LAYOUT_PATCHES:
      return v1::OUTPUT_LAYOUT_PATCHES;
    case v1::OUTPUT_LAYOUT_LATENTS:
      return v1::OUTPUT_LAYOUT_LATENTS;
    default:
      return FieldError("output_layout", absl::StrCat(static_cast<int>(layout),
                                                      ", expected OUTPUT_LAYOUT_PATCHES or OUTPUT_LAYOUT_LATENTS"));
  }
}

// How long a client is told to wait for a model that is not there yet.
constexpr absl::Duration kLoadingRetry = absl::Seconds(1);

absl::Status Loading(absl::string_view what) {
  return WithRetryAfter(FieldError("model", what, absl::StatusCode::kUnavailable), kLoadingRetry);
}

absl::StatusOr<Priority> DecodePriority(v1::Priority priority) {
  switch (priority) {
    case v1::PRIORITY_UNSPECIFIED:
    case v1::PRIORITY_INTERACTIVE:
      return Priority::kInteractive;
    case v1::PRIORITY_BATCH:
      return Priority::kBatch;
    default:
      return FieldError("priority",
                        absl::StrCat(static_cast<int>(priority), ", expected PRIORITY_INTERACTIVE or PRIORITY_BATCH"));
  }
}

absl::StatusOr<JoinPolicy> DecodeJoin(v1::Join join) {
  switch (join) {
    case v1::JOIN_UNSPECIFIED:
    case v1::JOIN_AUTO:
      return JoinPolicy::kAuto;
    case v1::JOIN_IMMEDIATE:
      return JoinPolicy::kImmediate;
    case v1::JOIN_WAIT:
      return JoinPolicy::kWait;
    default:
      return FieldError("join",
                        absl::StrCat(static_cast<int>(join), ", expected JOIN_AUTO, JOIN_IMMEDIATE or JOIN_WAIT"));
  }
}

absl::Status CheckCount(int64_t count, int64_t most, absl::string_view field) {
  if (count >= 1 && count <= most) return absl::OkStatus();
  return FieldError(field, absl::StrCat(count, ", expected 1 to ", most));
}

}  // namespace

absl::StatusOr<ModelInfo> FindModel(const std::vector<ModelInfo>& models, const std::string& name) {
  if (models.empty()) return Loading("none is loaded yet");
  if (name.empty() && models.size() > 1) {
    return FieldError("model", absl::StrCat("not given, expected one of ", QuotedNames(models)));
  }
  const auto found = name.empty() ? models.begin()
                                  : std::find_if(models.begin(), models.end(),
                                                 [&](const ModelInfo& info) { return info.name == name; });
  if (found == models.end()) {
    return FieldError("model", absl::StrCat(Quoted(name), ", expected one of ", QuotedNames(models)),
                      absl::StatusCode::kNotFound);
  }
  if (!found->ready) return Loading(absl::StrCat("\"", found->name, "\" is still loading"));
  return *found;
}

template <typename Request>
absl::StatusOr<Profile> RequestDecoder::DecodeProfile(const Request& request) const {
  absl::StatusOr<Profile> profile =
      request.has_vram_config()
          ? ResolveProfile("", FromProto(request.vram_config()), std::nullopt, catalogue_.target, "vram_config")
          : ConfiguredProfile(request.has_profile() ? request.profile() : catalogue_.default_profile);
  if (profile.ok() && request.has_vram_limit_gib()) {
    DITSERVE_ASSIGN_OR_RETURN(profile->vram_limit_bytes, VramLimitBytes(request.vram_limit_gib(), "vram_limit_gib"));
  }
  return profile;
}

template <typename Request>
absl::Status RequestDecoder::DecodeRide(const Request& request, const ModelInfo& model, DecodedForward& decoded) const {
  decoded.model = model.model;
  decoded.call.model = model.name;
  DITSERVE_ASSIGN_OR_RETURN(decoded.call.priority, DecodePriority(request.priority()));
  DITSERVE_ASSIGN_OR_RETURN(decoded.call.join, DecodeJoin(request.join()));
  DITSERVE_ASSIGN_OR_RETURN(decoded.call.profile, DecodeProfile(request));
  return absl::OkStatus();
}
template absl::Status RequestDecoder::DecodeRide(const v1::DenoiseRequest& request, const ModelInfo& model,
                                                 DecodedForward& decoded) const;

absl::Status RequestDecoder::CheckBatch(int64_t batch, absl::string_view field) const {
  return CheckCount(batch, limits_.max_batch, field);
}

absl::StatusOr<DecodedForward> RequestDecoder::Decode(const v1::ForwardRequest& request,
                                                      const std::vector<ModelInfo>& models) const {
  DITSERVE_ASSIGN_OR_RETURN(const ModelInfo model, FindModel(models, request.model()));
  DecodedForward decoded;
  DITSERVE_ASSIGN_OR_RETURN(decoded.layout, DecodeLayout(request.output_layout()));
  DITSERVE_RETURN_IF_ERROR(DecodeRide(request, model, decoded));
  DITSERVE_ASSIGN_OR_RETURN(decoded.call.inputs, DecodeInputs(request, model.model->config()));
  return decoded;
}

absl::StatusOr<PlanCall> RequestDecoder::DecodePlan(const v1::PlanRequest& request,
                                                    const std::vector<ModelInfo>& models) const {
  DITSERVE_ASSIGN_OR_RETURN(const ModelInfo model, FindModel(models, request.model()));
  PlanCall call;
  call.model = model.name;
  DITSERVE_ASSIGN_OR_RETURN(call.profile, DecodeProfile(request));
  DITSERVE_RETURN_IF_ERROR(CheckSide(request.height(), "height"));
  DITSERVE_RETURN_IF_ERROR(CheckSide(request.width(), "width"));
  const int64_t batch = request.batch() == 0 ? 1 : request.batch();
  DITSERVE_RETURN_IF_ERROR(CheckCount(batch, limits_.max_batch, "batch"));
  DITSERVE_RETURN_IF_ERROR(CheckCount(request.prompt_tokens(), kMaxTextTokens, "prompt_tokens"));
  const int64_t riders = request.riders() == 0 ? 1 : request.riders();
  DITSERVE_RETURN_IF_ERROR(CheckCount(riders, kMaxPlannedRiders, "riders"));
  call.riders = static_cast<int>(riders);
  call.known_timestep = request.known_timestep();
  call.shape = {request.height(), request.width(),
                std::vector<int64_t>(static_cast<size_t>(batch), request.prompt_tokens())};
  call.others = catalogue_.profiles;
  return call;
}

absl::StatusOr<ForwardInputs> RequestDecoder::DecodeInputs(const v1::ForwardRequest& request,
                                                           const QwenImageDiTConfig& config) const {
  ForwardInputs inputs;
  DITSERVE_ASSIGN_OR_RETURN(inputs.latents, DecodeLatents(request, config));
  const int64_t batch = inputs.latents.size(0);
  DITSERVE_ASSIGN_OR_RETURN(inputs.timestep, FloatingTensor(request.timestep(), "timestep"));
  DITSERVE_RETURN_IF_ERROR(CheckShape(inputs.timestep, {batch}, "[B] of latents", "timestep"));
  DITSERVE_ASSIGN_OR_RETURN(inputs.prompt_emb,
                            DecodePrompt(request.prompt_emb(), batch, config.joint_attention_dim, "prompt_emb"));
  if (request.has_prompt_emb_mask()) {
    DITSERVE_ASSIGN_OR_RETURN(inputs.prompt_emb_mask, DecodeMask(request.prompt_emb_mask(), batch,
                                                                 inputs.prompt_emb.size(1), "prompt_emb_mask"));
  }
  DITSERVE_RETURN_IF_ERROR(CheckFinite(inputs.latents, "latents"));
  DITSERVE_RETURN_IF_ERROR(CheckFinite(inputs.timestep, "timestep"));
  DITSERVE_RETURN_IF_ERROR(CheckTimestep(inputs.timestep));
  DITSERVE_RETURN_IF_ERROR(CheckFinite(inputs.prompt_emb, "prompt_emb"));
  return inputs;
}

template <typename Request>
absl::StatusOr<at::Tensor> RequestDecoder::DecodeLatents(const Request& request,
                                                         const QwenImageDiTConfig& config) const {
  DITSERVE_RETURN_IF_ERROR(CheckSide(request.height(), "height"));
  DITSERVE_RETURN_IF_ERROR(CheckSide(request.width(), "width"));
  DITSERVE_ASSIGN_OR_RETURN(at::Tensor latents, FloatingTensor(request.latents(), "latents"));
  DITSERVE_RETURN_IF_ERROR(CheckRank(latents, 4,
                                     "[B, 16, H/8, W/8] (of the images that are made: an Edit model's reference images "
                                     "can't be given)",
                                     "latents"));
  const int64_t batch = latents.size(0);
  if (batch > limits_.max_batch) {
    return FieldError("latents.shape", absl::StrCat("a batch of ", batch, ", expected at most ", limits_.max_batch));
  }
  const int64_t channels = config.in_channels / (config.patch_size * config.patch_size);
  DITSERVE_RETURN_IF_ERROR(
      CheckShape(latents, {batch, channels, request.height() / kLatentPixels, request.width() / kLatentPixels},
                 "[B, 16, height/8, width/8]", "latents"));
  return latents;
}
template absl::StatusOr<at::Tensor> RequestDecoder::DecodeLatents(const v1::DenoiseRequest& request,
                                                                  const QwenImageDiTConfig& config) const;

absl::Status RequestDecoder::CheckSide(int64_t pixels, absl::string_view field) const {
  if (pixels >= kSideStep && pixels <= limits_.max_side && pixels % kSideStep == 0) return absl::OkStatus();
  return FieldError(field, absl::StrCat(pixels, ", expected a multiple of ", kSideStep, " from ", kSideStep, " to ",
                                        limits_.max_side));
}

absl::StatusOr<Profile> RequestDecoder::ConfiguredProfile(const std::string& name) const {
  const auto& profiles = catalogue_.profiles;
  const auto found =
      std::find_if(profiles.begin(), profiles.end(), [&](const Profile& profile) { return profile.name == name; });
  if (found != profiles.end()) return *found;
  return FieldError("profile", absl::StrCat(Quoted(name), ", expected one of ", QuotedNames(profiles)),
                    absl::StatusCode::kNotFound);
}

}  // namespace ditserve
