// `ditctl denoise`: a whole denoising loop, from files or made-up prompts.
#include <grpcpp/client_context.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/ditctl/client.h"
#include "client/ditctl/commands.h"
#include "client/ditctl/json.h"
#include "client/ditctl/loop_file.h"
#include "client/ditctl/picture.h"
#include "client/ditctl/print.h"
#include "client/ditctl/progress.h"
#include "client/ditctl/server_access.h"
#include "client/ditctl/tensor_file.h"
#include "client/ditctl/tensors.h"
#include "client/ditctl/vram_config.h"
#include "core/base/flags.h"
#include "core/base/status_macros.h"
#include "core/base/text.h"
#include "ditserve/v1/denoise_service.grpc.pb.h"

namespace ditserve::ditctl {
namespace {

constexpr int64_t kPromptChannels = 3584;
constexpr int64_t kMaxTokens = 1024;
constexpr char kPreviewComment[] = "a linear approximation of the VAE, a pixel for each of the latents";

// What the command line asks for.
struct Options {
  ServerAccess server;
  std::string model, output, latents_output, preview, dtype = "bfloat16", priority = "interactive";
  std::optional<std::string> profile, vram_config, prompt_emb, prompt_mask, negative_emb, negative_mask, resume;
  std::optional<std::string> step_cache, tea_coefficients;
  std::optional<double> vram_limit_gib, cfg_scale, shift, deadline_seconds;
  std::optional<int64_t> first_step;
  int64_t height = 1024, width = 1024, batch = 1, seed = 0, steps = 50, latents_every = 0, prompt_tokens = 5;
  bool lightning = false, json = false;
};

void AddFlags(Options& options, CLI::App& app) {
  options.server.AddFlags(app, "the server");
  AddFlag(app, "model", "NAME", "model; may be left out where the server has one", &options.model);
  AddFlag(app, "profile", "NAME", "configured profile (see `ditctl profiles`)", &options.profile);
  AddFlag(app, "vram-config", "JSON|FILE", "inline vram_config with DiffSynth-Studio's keys", &options.vram_config);
  AddFlag(app, "vram-limit-gib", "GIB", "overrides the profile's limit", &options.vram_limit_gib);
  AddFlag(app, "height", "PIXELS", "default 1024", &options.height);
  AddFlag(app, "width", "PIXELS", "default 1024", &options.width);
  AddFlag(app, "batch", "N", "images (default 1)", &options.batch);
  AddFlag(app, "seed", "S", "of the noise, as torch.manual_seed takes it (default 0)", &options.seed);
  AddFlag(app, "dtype", "DTYPE", "of the loop: bfloat16 (default), float16, float32", &options.dtype);
  AddFlag(app, "steps", "N", "default 50", &options.steps);
  AddFlag(app, "shift", "S", "of sigmas, the same for all sizes (default: Qwen-Image's, by the size)", &options.shift);
  app.add_flag("--lightning", options.lightning, "the schedule of Lightning's distilled models");
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
  AddFlag(app, "output", "FILE", "saves the latents as .npy or .safetensors", &options.output);
  AddFlag(app, "latents-every", "N", "saves or shows them every N steps too: --save-latents, --preview",
          &options.latents_every);
  AddFlag(app, "save-latents", "FILE", "what they are saved to, each time anew", &options.latents_output);
  AddFlag(app, "preview", "FILE",
          "shows them as .png too, each time anew: by a linear approximation of the VAE, so only roughly what it makes",
          &options.preview);
  AddFlag(app, "resume", "FILE", "goes on from such latents; all else as it was", &options.resume);
  AddFlag(app, "first-step", "N", "after so many steps (default: as the .safetensors file tells)", &options.first_step);
  AddFlag(app, "priority", "PRIORITY", "interactive (default) or batch", &options.priority);
  AddFlag(app, "deadline-seconds", "S", "gives up after this (default: never)", &options.deadline_seconds);
  app.add_flag("--json", options.json, "prints JSON");
}

// What a field of the API holds; whether so many make sense is for the server to say.
absl::Status CheckCount(absl::string_view flag, int64_t value, int64_t least) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (value >= least && value <= kMost) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, ": expected ", least, " to ", kMost, ", found ", value));
}

absl::Status CheckOptions(const Options& options) {
  if (options.profile && options.vram_config) {
    return absl::InvalidArgumentError("give either --profile or --vram-config");
  }
  if (options.lightning && options.shift) return absl::InvalidArgumentError("give either --lightning or --shift");
  if (options.first_step && !options.resume) return absl::InvalidArgumentError("--first-step needs --resume");
  if (options.prompt_mask && !options.prompt_emb) {
    return absl::InvalidArgumentError("--prompt-emb-mask needs --prompt-emb");
  }
  if (options.negative_mask && !options.negative_emb) {
    return absl::InvalidArgumentError("--negative-emb-mask needs --negative-emb");
  }
  if (options.latents_every > 0 && options.latents_output.empty() && options.preview.empty()) {
    return absl::InvalidArgumentError("--latents-every needs --save-latents or --preview");
  }
  if (options.latents_every == 0 && !options.latents_output.empty()) {
    return absl::InvalidArgumentError("--save-latents needs --latents-every");
  }
  if (absl::EndsWith(options.latents_output, ".npy") && options.dtype == Name(DType::kBFloat16)) {
    return absl::InvalidArgumentError(
        "--save-latents: .npy has no bfloat16, in which the loop is to go on: name a .safetensors file");
  }
  DITSERVE_RETURN_IF_ERROR(CheckCount("steps", options.steps, 1));
  DITSERVE_RETURN_IF_ERROR(CheckCount("first-step", options.first_step.value_or(0), 0));
  DITSERVE_RETURN_IF_ERROR(CheckCount("latents-every", options.latents_every, 0));
  if (options.prompt_tokens < 1 || options.prompt_tokens > kMaxTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompt-tokens: expected 1 to ", kMaxTokens, ", found ", options.prompt_tokens));
  }
  if (options.deadline_seconds.value_or(1) <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--deadline-seconds: expected more than 0, found ", *options.deadline_seconds));
  }
  const std::vector<std::string> tensors = {".npy", ".safetensors"}, pictures = {".png"};
  for (const auto& [flag, file, extensions] :
       {std::tuple("output", &options.output, &tensors), std::tuple("save-latents", &options.latents_output, &tensors),
        std::tuple("preview", &options.preview, &pictures)}) {
    if (file->empty()) continue;
    const absl::Status writable = CheckWritable(*file, *extensions);
    if (!writable.ok()) return absl::InvalidArgumentError(absl::StrCat("--", flag, ": ", writable.message()));
  }
  return absl::OkStatus();
}

absl::StatusOr<DType> LoopDType(const std::string& name) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    if (Name(dtype) == name) return dtype;
  }
  return absl::InvalidArgumentError(absl::StrCat("--dtype: expected bfloat16, float16 or float32, found '", name, "'"));
}

absl::Status ReadPrompt(const std::optional<std::string>& emb, const std::optional<std::string>& mask,
                        v1::Prompt& prompt) {
  DITSERVE_ASSIGN_OR_RETURN(*prompt.mutable_emb(), ReadTensor(*emb, "prompt_emb"));
  if (mask) {
    DITSERVE_ASSIGN_OR_RETURN(*prompt.mutable_mask(), ReadTensor(*mask, "prompt_emb_mask"));
  }
  return absl::OkStatus();
}

void FillSchedule(const Options& options, v1::Schedule& schedule) {
  schedule.set_steps(static_cast<int32_t>(options.steps));
  if (options.shift) schedule.set_fixed(*options.shift);
  if (!options.lightning) return;
  constexpr double kLn3 = 1.0986122886681098;
  schedule.mutable_dynamic()->set_base_shift(kLn3);
  schedule.mutable_dynamic()->set_max_shift(kLn3);
}

absl::Status FillStepCache(const Options& options, v1::DenoiseRequest& request) {
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
  for (const absl::string_view text : absl::StrSplit(*options.tea_coefficients, ',')) {
    double coefficient = 0;
    if (!absl::SimpleAtod(text, &coefficient)) {
      return absl::InvalidArgumentError(absl::StrCat("--tea-coefficients: expected numbers, found '", text, "'"));
    }
    tea.add_coefficients(coefficient);
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::DenoiseRequest> MakeRequest(const Options& options) {
  DITSERVE_RETURN_IF_ERROR(CheckOptions(options));
  v1::DenoiseRequest request;
  v1::Priority priority;
  if (!v1::Priority_Parse(absl::StrCat("PRIORITY_", absl::AsciiStrToUpper(options.priority)), &priority)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--priority: expected interactive or batch, found '", options.priority, "'"));
  }
  request.set_priority(priority);
  request.set_model(options.model);
  if (options.profile) request.set_profile(*options.profile);
  if (options.vram_config) {
    DITSERVE_ASSIGN_OR_RETURN(*request.mutable_vram_config(), ParseVramConfig(*options.vram_config));
  }
  if (options.vram_limit_gib) request.set_vram_limit_gib(*options.vram_limit_gib);
  request.set_height(options.height);
  request.set_width(options.width);
  FillSchedule(options, *request.mutable_schedule());
  DITSERVE_RETURN_IF_ERROR(FillStepCache(options, request));
  DITSERVE_ASSIGN_OR_RETURN(const DType dtype, LoopDType(options.dtype));
  request.mutable_noise()->add_seeds(static_cast<uint64_t>(options.seed));
  request.mutable_noise()->set_batch(options.batch);
  request.mutable_noise()->set_dtype(ToProto(dtype));
  if (options.resume) DITSERVE_RETURN_IF_ERROR(ResumeLoop(*options.resume, options.first_step, request));
  request.set_latents_every(static_cast<int32_t>(options.latents_every));
  if (options.prompt_emb) {
    DITSERVE_RETURN_IF_ERROR(ReadPrompt(options.prompt_emb, options.prompt_mask, *request.mutable_prompt()));
  } else {
    *request.mutable_prompt()->mutable_emb() = SeededTensor(static_cast<uint64_t>(options.seed), "prompt_emb",
                                                            {1, options.prompt_tokens, kPromptChannels}, dtype);
  }
  if (options.negative_emb) {
    DITSERVE_RETURN_IF_ERROR(
        ReadPrompt(options.negative_emb, options.negative_mask, *request.mutable_negative_prompt()));
  }
  if (options.cfg_scale) request.set_true_cfg_scale(*options.cfg_scale);
  return request;
}

void Show(const v1::DenoiseProgress& at, Progress& progress) {
  const std::string what =
      at.stage() == v1::FORWARD_STAGE_QUEUED
          ? std::string("waiting for admission")
          : absl::StrCat("step ", at.steps_done(), " of ", at.steps(), ", module ", at.modules_done(), " of ",
                         at.modules_total(), ", ", Bytes(at.disk_read_bytes()), " read",
                         at.steps_skipped() > 0 ? absl::StrCat(", ", at.steps_skipped(), " skipped") : "");
  progress.Show(at.modules_done(), at.modules_total(), what, absl::Now());
}

absl::Status DataLossUnless(const absl::Status& sound) {
  if (sound.ok()) return sound;
  return absl::DataLossError(absl::StrCat("the server's latents are damaged: ", sound.message()));
}

// If it is asked for.
absl::Status WritePreview(const std::string& path, const v1::Tensor& latents) {
  if (path.empty()) return absl::OkStatus();
  Picture picture;
  DITSERVE_RETURN_IF_ERROR(DataLossUnless(Preview(latents, picture)));
  return WriteWhole(path, EncodePng(picture, kPreviewComment));
}

// What a call has come to.
struct Outcome {
  grpc::Status status;
  v1::DenoiseResult result;  // Where that is OK.
  absl::Status kept;         // What became of latents on the way.
  std::string saved;         // A line that tells which were saved last.
};

// Saves and shows latents on the way, as is asked for.
absl::Status Keep(const Options& options, const v1::DenoiseRequest& request, const v1::DenoiseProgress& at,
                  std::string& saved) {
  DITSERVE_RETURN_IF_ERROR(DataLossUnless(CheckFloating(at.latents())));
  const std::string& file = options.latents_output;
  if (!file.empty()) {
    DITSERVE_RETURN_IF_ERROR(SaveLoop(file, at.latents(), at.latents_after(), request));
    saved = absl::StrCat("saved ", file, " after step ", at.latents_after(), " of ", at.steps(), "\n");
  }
  return WritePreview(options.preview, at.latents());
}

// Sends the request and shows progress until the result comes.
Outcome Send(const Options& options, const v1::DenoiseRequest& request, const Environment& environment) {
  grpc::ClientContext context;
  if (options.deadline_seconds) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(*options.deadline_seconds)));
  }
  options.server.Authorize(context);
  const CancelOnInterrupt interrupt(context, environment);
  const auto stub = v1::DenoiseService::NewStub(options.server.Connect());
  const auto reader = stub->Denoise(&context, request);
  Outcome outcome;
  bool answered = false;
  Progress progress(environment.err, environment.err_is_terminal);
  v1::DenoiseResponse event;
  while (reader->Read(&event)) {
    if (event.has_progress()) {
      if (event.progress().has_latents() && outcome.kept.ok()) {
        outcome.kept = Keep(options, request, event.progress(), outcome.saved);
        if (!outcome.kept.ok()) context.TryCancel();
      }
      Show(event.progress(), progress);
    }
    if (!event.has_result()) continue;
    outcome.result = std::move(*event.mutable_result());
    answered = true;
  }
  outcome.status = reader->Finish();
  if (environment.interrupted) {
    outcome.status = grpc::Status(grpc::StatusCode::CANCELLED, "interrupted");
  } else if (outcome.status.ok() && !answered) {
    outcome.status = grpc::Status(grpc::StatusCode::INTERNAL, "the server ended the stream without a result");
  }
  return outcome;
}

// Which steps: "skipped     2: 3, 5; in part 1: 4".
std::string DescribeReused(const v1::DenoiseResult& result) {
  std::vector<int> skipped, in_part;
  for (const v1::ReusedStep& step : result.reused_steps()) (step.skipped() ? skipped : in_part).push_back(step.step());
  const auto list = [](const std::vector<int>& steps) {
    return absl::StrCat(steps.size(), steps.empty() ? "" : ": ", absl::StrJoin(steps, ", "));
  };
  return absl::StrCat("skipped     ", list(skipped), "; in part ", list(in_part), "\n");
}

absl::Status Save(const Options& options, const v1::Tensor& latents) {
  DITSERVE_RETURN_IF_ERROR(DataLossUnless(CheckFloating(latents)));
  if (!options.output.empty()) DITSERVE_RETURN_IF_ERROR(WriteTensor(options.output, "latents", latents));
  return WritePreview(options.preview, latents);
}

// Saves and prints the result; returns the exit code.
int Report(const Options& options, const v1::DenoiseResult& result, const Environment& environment) {
  if (const absl::Status saved = Save(options, result.latents()); !saved.ok()) return Fail(saved, environment);
  const Statistics statistics = StatisticsOf(result.latents());
  environment.err << NonFiniteWarning(statistics);
  if (options.json) {
    environment.out << DenoiseJson(result, statistics);
  } else {
    environment.out << Describe(result.latents(), statistics) << Describe(result.stats());
    if (options.step_cache) environment.out << DescribeReused(result);
    if (!options.preview.empty())
      environment.out << "preview     " << options.preview << ": " << kPreviewComment << "\n";
  }
  return kOk;
}

}  // namespace

int Denoise(const std::vector<std::string>& arguments, const Environment& environment) {
  Options options{.server = ServerAccess(environment.default_address)};
  CLI::App app("Makes a denoising loop on the server and shows what it took.", "ditctl denoise");
  AddFlags(options, app);
  if (const std::optional<int> ended = Parse(app, arguments, environment, &options.server)) return *ended;
  const absl::StatusOr<v1::DenoiseRequest> request = MakeRequest(options);
  if (!request.ok()) return Fail(request.status(), environment);
  const Outcome outcome = Send(options, *request, environment);
  environment.err << outcome.saved;
  if (!outcome.kept.ok()) return Fail(outcome.kept, environment);
  return outcome.status.ok() ? Report(options, outcome.result, environment)
                             : Fail(outcome.status, options.server.address(), environment);
}

}  // namespace ditserve::ditctl
