#include "client/ditctl/denoise_request.h"

#include <limits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/ditctl/loop_file.h"
#include "client/ditctl/tensor_file.h"
#include "client/ditctl/tensors.h"
#include "core/base/status_macros.h"

namespace ditserve::ditctl {
namespace {

constexpr int64_t kPromptChannels = 3584;
constexpr int64_t kMaxTokens = 1024;
constexpr int64_t kUsualSteps = 50;

absl::Status CheckTogether(const DenoiseOptions& options) {
  const std::vector<std::pair<bool, absl::string_view>> mistakes = {
      {options.steps && options.sigmas, "give either --steps or --sigmas"},
      {options.lightning && options.shift, "give either --lightning or --shift"},
      {options.base_shift.has_value() != options.max_shift.has_value(), "--base-shift and --max-shift go together"},
      {options.base_shift && (options.lightning || options.shift),
       "give either --base-shift and --max-shift, --lightning or --shift"},
      {options.mask && !options.image, "--mask needs --image"},
      {options.strength && !options.image, "--strength needs --image"},
      {options.first_step && !options.resume, "--first-step needs --resume"},
      {options.prompt_mask && !options.prompt_emb, "--prompt-emb-mask needs --prompt-emb"},
      {options.negative_mask && !options.negative_emb, "--negative-emb-mask needs --negative-emb"}};
  for (const auto& [wrong, what] : mistakes) {
    if (wrong) return absl::InvalidArgumentError(what);
  }
  return absl::OkStatus();
}

// What a field of the API holds; whether so many make sense is for the server to say.
absl::Status CheckCount(absl::string_view flag, int64_t value, int64_t least,
                        int64_t most = std::numeric_limits<int32_t>::max()) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, ": expected ", least, " to ", most, ", found ", value));
}

absl::StatusOr<DType> LoopDType(const std::string& name) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    if (Name(dtype) == name) return dtype;
  }
  return absl::InvalidArgumentError(absl::StrCat("--dtype: expected bfloat16, float16 or float32, found '", name, "'"));
}

absl::StatusOr<std::vector<double>> ReadNumbers(absl::string_view flag, const std::string& list) {
  std::vector<double> numbers;
  for (const absl::string_view text : absl::StrSplit(list, ',')) {
    if (absl::SimpleAtod(text, &numbers.emplace_back())) continue;
    return absl::InvalidArgumentError(absl::StrCat("--", flag, ": expected numbers, found '", text, "'"));
  }
  return numbers;
}

absl::Status FillSchedule(const DenoiseOptions& options, v1::Schedule& schedule) {
  if (options.sigmas) {
    DITSERVE_ASSIGN_OR_RETURN(const std::vector<double> sigmas, ReadNumbers("sigmas", *options.sigmas));
    schedule.mutable_sigmas()->Add(sigmas.begin(), sigmas.end());
  } else {
    schedule.set_steps(static_cast<int32_t>(options.steps.value_or(kUsualSteps)));
  }
  if (options.shift) schedule.set_fixed(*options.shift);
  if (options.lightning || options.base_shift) {
    constexpr double kLn3 = 1.0986122886681098;
    schedule.mutable_dynamic()->set_base_shift(options.base_shift.value_or(kLn3));
    schedule.mutable_dynamic()->set_max_shift(options.max_shift.value_or(kLn3));
  }
  if (options.shift_terminal) schedule.set_shift_terminal(*options.shift_terminal);
  if (options.strength) schedule.set_strength(*options.strength);
  return absl::OkStatus();
}

absl::Status FillNoise(const DenoiseOptions& options, DType dtype, v1::Noise& noise) {
  for (const absl::string_view text : absl::StrSplit(options.seeds, ',')) {
    uint64_t seed = 0;
    int64_t negative = 0;  // torch takes these too, as the same bits.
    if (!absl::SimpleAtoi(text, &seed)) {
      if (!absl::SimpleAtoi(text, &negative)) {
        return absl::InvalidArgumentError(absl::StrCat("--seed: expected integers of 64 bits, found '", text, "'"));
      }
      seed = static_cast<uint64_t>(negative);
    }
    noise.add_seeds(seed);
  }
  noise.set_batch(options.batch.value_or(noise.seeds_size()));
  noise.set_dtype(ToProto(dtype));
  return absl::OkStatus();
}

absl::Status FillStepCache(const DenoiseOptions& options, v1::DenoiseRequest& request) {
  const bool is_tea = options.step_cache && absl::StartsWith(*options.step_cache, "tea:");
  if (options.tea_coefficients && !is_tea)
    return absl::InvalidArgumentError("--tea-coefficients are of --step-cache tea");
  if (!options.step_cache) return absl::OkStatus();
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(*options.step_cache, absl::MaxSplits(':', 1));
  double threshold = 0;
  if ((parts.first != "first-block" && !is_tea) || !absl::SimpleAtod(parts.second, &threshold)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--step-cache: expected first-block:THRESHOLD or tea:THRESHOLD, found '", *options.step_cache, "'"));
  }
  if (!is_tea) {
    request.mutable_step_cache()->mutable_first_block()->set_threshold(threshold);
    return absl::OkStatus();
  }
  v1::TeaCache& tea = *request.mutable_step_cache()->mutable_tea();
  tea.set_threshold(threshold);
  if (!options.tea_coefficients) return absl::OkStatus();
  DITSERVE_ASSIGN_OR_RETURN(const std::vector<double> numbers,
                            ReadNumbers("tea-coefficients", *options.tea_coefficients));
  tea.mutable_coefficients()->Add(numbers.begin(), numbers.end());
  return absl::OkStatus();
}

absl::Status ReadPrompt(const std::string& emb, const std::optional<std::string>& mask, v1::Prompt& prompt) {
  DITSERVE_ASSIGN_OR_RETURN(*prompt.mutable_emb(), ReadTensor(emb, "prompt_emb"));
  if (mask) {
    DITSERVE_ASSIGN_OR_RETURN(*prompt.mutable_mask(), ReadTensor(*mask, "prompt_emb_mask"));
  }
  return absl::OkStatus();
}

absl::Status FillPrompts(const DenoiseOptions& options, DType dtype, v1::DenoiseRequest& request) {
  if (options.prompt_emb) {
    DITSERVE_RETURN_IF_ERROR(ReadPrompt(*options.prompt_emb, options.prompt_mask, *request.mutable_prompt()));
  } else {
    *request.mutable_prompt()->mutable_emb() =
        SeededTensor(request.noise().seeds(0), "prompt_emb", {1, options.prompt_tokens, kPromptChannels}, dtype);
  }
  if (options.cfg_scale) request.set_true_cfg_scale(*options.cfg_scale);
  if (!options.negative_emb) return absl::OkStatus();
  return ReadPrompt(*options.negative_emb, options.negative_mask, *request.mutable_negative_prompt());
}

// In the loop's dtype, which the server expects of them.
absl::Status ReadPicture(const std::string& path, const std::string& name, DType dtype, v1::Tensor& picture) {
  DITSERVE_ASSIGN_OR_RETURN(const v1::Tensor stored, ReadTensor(path, name));
  if (const absl::Status floating = CheckFloating(stored); !floating.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", floating.message()));
  }
  picture = ConvertTo(stored, dtype);
  return absl::OkStatus();
}

}  // namespace

void AddDenoiseFlags(DenoiseOptions& options, CLI::App& app) {
  AddRideFlags(options.ride, app);
  AddFlag(app, "height", "PIXELS", "default 1024", &options.height);
  AddFlag(app, "width", "PIXELS", "default 1024", &options.width);
  AddFlag(app, "batch", "N", "images (default: as many as seeds)", &options.batch);
  AddFlag(app, "seed", "S,S", "of the noise, as torch.manual_seed takes it: one, or one for each image (default 0)",
          &options.seeds);
  AddFlag(app, "dtype", "DTYPE", "of the loop: bfloat16 (default), float16, float32", &options.dtype);
  AddFlag(app, "steps", "N", "default 50", &options.steps);
  AddFlag(app, "sigmas", "S,S", "to start from in the place of even ones, falling, above 0 and at most 1",
          &options.sigmas);
  AddFlag(app, "shift", "S", "of sigmas, the same for all sizes (default: Qwen-Image's, by the size)", &options.shift);
  AddFlag(app, "base-shift", "S", "of the smallest pictures, with --max-shift: by the size", &options.base_shift);
  AddFlag(app, "max-shift", "S", "of the largest", &options.max_shift);
  app.add_flag("--lightning", options.lightning, "the schedule of Lightning's distilled models");
  AddFlag(app, "shift-terminal", "S", "the last step's sigma (default: 0.02 with Qwen-Image's shift, else none)",
          &options.shift_terminal);
  AddFlag(app, "image", "FILE", "latents of an image to begin from, .npy or .safetensors", &options.image);
  AddFlag(app, "strength", "S", "how much of it is made anew, above 0 and at most 1 (default)", &options.strength);
  AddFlag(app, "mask", "FILE", "1 where it is made anew, 0 where it stays, for each of its latents", &options.mask);
  AddFlag(app, "cfg-scale", "S", "of guidance, where there is a negative prompt (default 4)", &options.cfg_scale);
  AddFlag(app, "step-cache", "RULE:THRESHOLD",
          "reuses what blocks added at earlier steps, approximately: first-block:0.1 or tea:0.2", &options.step_cache);
  AddFlag(app, "tea-coefficients", "A,B,C,D,E", "of TeaCache's polynomial, for models that none are known for",
          &options.tea_coefficients);
  AddFlag(app, "prompt-emb", "FILE", ".npy or .safetensors; made up from the seed if left out", &options.prompt_emb);
  AddFlag(app, "prompt-emb-mask", "FILE", ".npy or .safetensors", &options.prompt_mask);
  AddFlag(app, "negative-emb", "FILE", ".npy or .safetensors", &options.negative_emb);
  AddFlag(app, "negative-emb-mask", "FILE", ".npy or .safetensors", &options.negative_mask);
  AddFlag(app, "prompt-tokens", "N", "for a made-up prompt (default 5)", &options.prompt_tokens);
  AddFlag(app, "latents-every", "N", "latents on the way every N steps, for --save-latents and --preview",
          &options.latents_every);
  AddFlag(app, "resume", "FILE", "goes on from latents that --save-latents saved; all else as it was", &options.resume);
  AddFlag(app, "first-step", "N", "after so many steps (default: as the .safetensors file tells)", &options.first_step);
}

absl::StatusOr<v1::DenoiseRequest> MakeDenoiseRequest(const DenoiseOptions& options) {
  DITSERVE_RETURN_IF_ERROR(CheckTogether(options));
  DITSERVE_RETURN_IF_ERROR(CheckCount("steps", options.steps.value_or(kUsualSteps), 1));
  DITSERVE_RETURN_IF_ERROR(CheckCount("first-step", options.first_step.value_or(0), 0));
  DITSERVE_RETURN_IF_ERROR(CheckCount("latents-every", options.latents_every, 0));
  DITSERVE_RETURN_IF_ERROR(CheckCount("prompt-tokens", options.prompt_tokens, 1, kMaxTokens));
  v1::DenoiseRequest request;
  DITSERVE_RETURN_IF_ERROR(FillRide(options.ride, request));
  request.set_height(options.height);
  request.set_width(options.width);
  request.set_latents_every(static_cast<int32_t>(options.latents_every));
  DITSERVE_RETURN_IF_ERROR(FillSchedule(options, *request.mutable_schedule()));
  DITSERVE_RETURN_IF_ERROR(FillStepCache(options, request));
  DITSERVE_ASSIGN_OR_RETURN(const DType dtype, LoopDType(options.dtype));
  DITSERVE_RETURN_IF_ERROR(FillNoise(options, dtype, *request.mutable_noise()));
  DITSERVE_RETURN_IF_ERROR(FillPrompts(options, dtype, request));
  if (options.image) {
    DITSERVE_RETURN_IF_ERROR(ReadPicture(*options.image, "latents", dtype, *request.mutable_image()));
  }
  if (options.mask) DITSERVE_RETURN_IF_ERROR(ReadPicture(*options.mask, "mask", dtype, *request.mutable_mask()));
  if (options.resume) DITSERVE_RETURN_IF_ERROR(ResumeLoop(*options.resume, options.first_step, request));
  if (request.ByteSizeLong() > static_cast<size_t>(kMaxMessageBytes)) {
    return absl::InvalidArgumentError("the inputs would exceed the 2 GiB that a message can hold");
  }
  return request;
}

}  // namespace ditserve::ditctl
