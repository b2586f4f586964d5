// What a DenoiseRequest asks for, checked.
#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/base/error_details.h"
#include "core/base/status_macros.h"
#include "models/denoising/guidance.h"
#include "models/denoising/noise.h"
#include "models/weights.h"
#include "server/rpc/request_decoder.h"
#include "server/rpc/tensor_codec.h"
#include "server/rpc/tensor_fields.h"

namespace ditserve {
namespace {

// Of Qwen-Image's pipelines.
constexpr double kUsualScale = 4;

// An error of the loop's mathematics, whose fields have other names here.
absl::Status Named(const absl::Status& status) {
  std::string field = FieldOf(status);
  if (status.ok() || field.empty()) return status;
  const absl::string_view what = absl::string_view(status.message().data(), status.message().size())
                                     .substr(field.size() + 2);  // Behind "field: ".
  const auto rename = [&field](absl::string_view from, absl::string_view to) {
    if (absl::StartsWith(field, from)) field = absl::StrCat(to, absl::string_view(field).substr(from.size()));
  };
  rename("dynamic_shift", "schedule.dynamic");
  rename("shift_terminal", "schedule.shift_terminal");
  if (field == "shift") field = "schedule.fixed";
  for (const absl::string_view name : {"steps", "sigmas", "strength"}) rename(name, absl::StrCat("schedule.", name));
  if (field == "seeds") field = "noise.seeds";
  return FieldError(field, what, status.code());
}

FlowScheduleOptions OptionsOf(const v1::Schedule& proto, Numerics numerics) {
  FlowScheduleOptions options;
  options.numerics = numerics;
  if (proto.steps() != 0) options.steps = proto.steps();
  options.sigmas.assign(proto.sigmas().begin(), proto.sigmas().end());
  if (proto.has_fixed()) {
    options.dynamic_shift.reset();
    options.shift = proto.fixed();
  } else if (proto.has_dynamic()) {
    options.dynamic_shift = DynamicShift{proto.dynamic().base_shift(), proto.dynamic().max_shift()};
  }
  if (proto.shift_case() != v1::Schedule::SHIFT_NOT_SET) options.shift_terminal.reset();
  if (proto.has_shift_terminal()) options.shift_terminal = proto.shift_terminal();
  if (proto.has_strength()) options.strength = proto.strength();
  return options;
}

// A terminal that the client left out is no field to tell it of: what the usual one does not go with is.
absl::Status WhyNoSchedule(const absl::Status& status, const v1::Schedule& proto) {
  if (FieldOf(status) != "shift_terminal" || proto.has_shift_terminal()) return Named(status);
  if (!proto.sigmas().empty()) {
    return FieldError("schedule.sigmas", "the last one is 1, expected less, or a shift of the request's own");
  }
  return FieldError("schedule.steps",
                    absl::StrCat(proto.steps(), ", expected 2 or more, or a shift of the request's own"));
}

absl::StatusOr<StepCacheOptions> DecodeStepCache(const v1::StepCache& proto, const QwenImageDiTConfig& config) {
  StepCacheOptions options;
  std::string field = "step_cache.first_block";
  switch (proto.rule_case()) {
    case v1::StepCache::RULE_NOT_SET:
      return FieldError("step_cache", "has no rule, expected first_block or tea");
    case v1::StepCache::kFirstBlock:
      options.threshold = proto.first_block().threshold();
      break;
    case v1::StepCache::kTea: {
      field = "step_cache.tea";
      options.rule = StepCacheRule::kTeaCache;
      options.threshold = proto.tea().threshold();
      const auto& given = proto.tea().coefficients();
      const bool fitted = config.num_layers == StepCacheOptions::kFittedBlocks;
      if (!(fitted && given.empty()) && given.size() != static_cast<int>(options.polynomial.size())) {
        const std::string why =
            fitted ? ", or none" : absl::StrCat(": for models of ", config.num_layers, " blocks none are known");
        return FieldError(absl::StrCat(field, ".coefficients"),
                          absl::StrCat(given.size(), ", expected ", options.polynomial.size(), why));
      }
      std::copy(given.begin(), given.end(), options.polynomial.begin());
      break;
    }
  }
  const absl::Status checked = CheckStepCache(options);
  if (checked.ok()) return options;
  const std::string of_options = FieldOf(checked);
  const absl::string_view what = absl::string_view(checked.message()).substr(of_options.size() + 2);
  return FieldError(absl::StrCat(field, of_options == "polynomial" ? ".coefficients" : ".threshold"), what);
}

// Of a batch: views of the message, though one may be for all.
struct Prompts {
  at::Tensor emb;   // [batch, T, width]
  at::Tensor mask;  // [batch, T]; undefined: all tokens count.
};

absl::StatusOr<Prompts> DecodePrompts(const v1::Prompt& proto, int64_t batch, int64_t width, const std::string& field) {
  const bool one_for_all = proto.emb().shape_size() == 3 && proto.emb().shape(0) == 1;
  const int64_t given = one_for_all ? 1 : batch;
  Prompts prompts;
  DITSERVE_ASSIGN_OR_RETURN(prompts.emb, DecodePrompt(proto.emb(), given, width, absl::StrCat(field, ".emb")));
  DITSERVE_RETURN_IF_ERROR(CheckFinite(prompts.emb, absl::StrCat(field, ".emb")));
  const int64_t tokens = prompts.emb.size(1);
  if (proto.has_mask()) {
    DITSERVE_ASSIGN_OR_RETURN(prompts.mask, DecodeMask(proto.mask(), given, tokens, absl::StrCat(field, ".mask")));
    prompts.mask = prompts.mask.expand({batch, tokens});
  }
  prompts.emb = prompts.emb.expand({batch, tokens, width});
  return prompts;
}

template <typename Element>
bool IsWithin01(const at::Tensor& tensor) {
  const auto* const begin = static_cast<const Element*>(tensor.const_data_ptr());
  return std::all_of(begin, begin + tensor.numel(), [](Element element) {
    return static_cast<float>(element) >= 0 && static_cast<float>(element) <= 1;
  });
}

absl::Status CheckMask(const at::Tensor& mask) {
  const at::ScalarType dtype = mask.scalar_type();
  const bool within = dtype == at::kFloat  ? IsWithin01<float>(mask)
                      : dtype == at::kHalf ? IsWithin01<c10::Half>(mask)
                                           : IsWithin01<c10::BFloat16>(mask);
  return within ? absl::OkStatus() : FieldError("mask.data", "has values outside [0, 1]");
}

absl::StatusOr<at::ScalarType> DecodeLoopDType(v1::Dtype dtype) {
  switch (dtype) {
    case v1::DTYPE_UNSPECIFIED:
    case v1::DTYPE_BFLOAT16:
      return at::kBFloat16;
    case v1::DTYPE_FLOAT32:
      return at::kFloat;
    case v1::DTYPE_FLOAT16:
      return at::kHalf;
    default:
      return FieldError("noise.dtype", absl::StrCat(Name(dtype), ", expected float32, bfloat16 or float16"));
  }
}

// A tensor of the loop's own, in its dtype: [batch or 1, channels, height/8, width/8].
absl::StatusOr<at::Tensor> DecodePicture(const v1::Tensor& proto, int64_t channels, const at::Tensor& latents,
                                         absl::string_view field) {
  DITSERVE_ASSIGN_OR_RETURN(const at::Tensor picture, FloatingTensor(proto, field));
  DITSERVE_RETURN_IF_ERROR(CheckRank(picture, 4, "[B or 1, channels, H/8, W/8]", field));
  const int64_t batch = picture.size(0) == 1 ? 1 : latents.size(0);
  DITSERVE_RETURN_IF_ERROR(CheckShape(picture, {batch, channels, latents.size(2), latents.size(3)},
                                      "[B or 1, channels, height/8, width/8]", field));
  if (picture.scalar_type() != latents.scalar_type()) {
    return FieldError(absl::StrCat(field, ".dtype"), absl::StrCat(Name(proto.dtype()), ", expected that of the loop, ",
                                                                  Name(ToProto(DTypeOf(latents.scalar_type())))));
  }
  DITSERVE_RETURN_IF_ERROR(CheckFinite(picture, field));
  return picture;
}

absl::Status DecodeSeeds(const v1::DenoiseRequest& request, int64_t batch, std::vector<uint64_t>& seeds) {
  if (!request.has_noise()) return FieldError("noise", "not given, expected noise or latents");
  seeds.assign(request.noise().seeds().begin(), request.noise().seeds().end());
  return Named(CheckSeeds(seeds.size(), batch));
}

}  // namespace

absl::StatusOr<DecodedForward> RequestDecoder::DecodeDenoise(const v1::DenoiseRequest& request,
                                                             const std::vector<ModelInfo>& models) const {
  DITSERVE_ASSIGN_OR_RETURN(const ModelInfo model, FindModel(models, request.model()));
  const QwenImageDiTConfig& config = model.model->config();
  DecodedForward decoded;
  DITSERVE_RETURN_IF_ERROR(DecodeRide(request, model, decoded));
  DITSERVE_RETURN_IF_ERROR(CheckSide(request.height(), "height"));
  DITSERVE_RETURN_IF_ERROR(CheckSide(request.width(), "width"));
  Denoising& what = decoded.call.denoising.emplace();
  const int64_t image_tokens = request.height() / kPatchPixels * (request.width() / kPatchPixels);
  absl::StatusOr<FlowSchedule> schedule =
      MakeFlowSchedule(OptionsOf(request.schedule(), config.numerics), image_tokens);
  if (!schedule.ok()) return WhyNoSchedule(schedule.status(), request.schedule());
  what.schedule = *std::move(schedule);
  what.first_step = request.first_step();
  if (what.first_step < 0 || what.first_step >= what.schedule.steps()) {
    return FieldError("first_step", absl::StrCat(what.first_step, ", expected 0 to ", what.schedule.steps() - 1));
  }
  if (what.first_step > 0 && !request.has_latents()) {
    return FieldError("latents", "not given, expected those that the steps before first_step ended with");
  }
  if (request.latents_every() < 0) {
    return FieldError("latents_every", absl::StrCat(request.latents_every(), ", expected 0 or more"));
  }
  what.latents_every = request.latents_every();
  if (request.has_step_cache()) {
    DITSERVE_ASSIGN_OR_RETURN(what.step_cache, DecodeStepCache(request.step_cache(), config));
  }

  at::Tensor latents;
  if (request.has_latents()) {
    DITSERVE_ASSIGN_OR_RETURN(latents, DecodeLatents(request, config));
    DITSERVE_RETURN_IF_ERROR(CheckFinite(latents, "latents"));
  } else {
    const int64_t batch = request.noise().batch() == 0 ? 1 : request.noise().batch();
    DITSERVE_RETURN_IF_ERROR(CheckBatch(batch, "noise.batch"));
    DITSERVE_ASSIGN_OR_RETURN(const at::ScalarType dtype, DecodeLoopDType(request.noise().dtype()));
    DITSERVE_RETURN_IF_ERROR(DecodeSeeds(request, batch, what.seeds));
    what.start = LoopStart::kNoise;
    // Of their shape alone: noise is made by the loop.
    latents = at::empty({1, 1, 1, 1}, at::TensorOptions().dtype(dtype))
                  .expand({batch, config.out_channels, request.height() / 8, request.width() / 8});
  }
  const int64_t batch = latents.size(0);
  if (request.has_mask() && !request.has_image()) {
    return FieldError("image", "not given, expected the one whose rest the mask keeps");
  }
  if (request.schedule().has_strength() && !request.has_image()) {
    return FieldError("image", "not given, expected the one that schedule.strength is of");
  }
  if (request.has_image()) {
    DITSERVE_ASSIGN_OR_RETURN(what.image, DecodePicture(request.image(), latents.size(1), latents, "image"));
    DITSERVE_RETURN_IF_ERROR(DecodeSeeds(request, batch, what.seeds));
    if (!request.has_latents()) what.start = LoopStart::kImage;
    if (request.has_mask()) {
      DITSERVE_ASSIGN_OR_RETURN(what.mask, DecodePicture(request.mask(), 1, latents, "mask"));
      DITSERVE_RETURN_IF_ERROR(CheckMask(what.mask));
    }
  }

  const double scale = request.has_true_cfg_scale() ? request.true_cfg_scale() : kUsualScale;
  DITSERVE_ASSIGN_OR_RETURN(const bool guided, IsGuided(config.numerics, scale, request.has_negative_prompt()));
  DITSERVE_ASSIGN_OR_RETURN(Prompts prompts,
                            DecodePrompts(request.prompt(), batch, config.joint_attention_dim, "prompt"));
  if (request.has_negative_prompt()) {
    DITSERVE_ASSIGN_OR_RETURN(Prompts negative, DecodePrompts(request.negative_prompt(), batch,
                                                              config.joint_attention_dim, "negative_prompt"));
    if (guided && negative.emb.scalar_type() != prompts.emb.scalar_type()) {
      return FieldError("negative_prompt.emb.dtype", "is not that of prompt.emb");
    }
    if (guided) what.guidance = {scale, std::move(negative.emb), std::move(negative.mask)};
  }
  ForwardInputs& inputs = decoded.call.inputs;
  inputs.latents = latents;
  inputs.prompt_emb = std::move(prompts.emb);
  inputs.prompt_emb_mask = std::move(prompts.mask);
  inputs.timestep = LoopTimesteps(what, latents.scalar_type()).narrow(0, 0, 1).expand({batch}).contiguous();
  return decoded;
}

}  // namespace ditserve
