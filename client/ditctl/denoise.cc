// `ditctl denoise`: a whole denoising loop, from files or made-up prompts.
#include <grpcpp/client_context.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/ditctl/client.h"
#include "client/ditctl/commands.h"
#include "client/ditctl/denoise_request.h"
#include "client/ditctl/json.h"
#include "client/ditctl/loop_file.h"
#include "client/ditctl/picture.h"
#include "client/ditctl/print.h"
#include "client/ditctl/progress.h"
#include "client/ditctl/server_access.h"
#include "client/ditctl/tensor_file.h"
#include "client/ditctl/tensors.h"
#include "core/base/flags.h"
#include "core/base/status_macros.h"
#include "core/base/text.h"
#include "ditserve/v1/denoise_service.grpc.pb.h"

namespace ditserve::ditctl {
namespace {

constexpr char kPreviewComment[] = "a linear approximation of the VAE, a pixel for each of the latents";

// What the command line asks for.
struct Options {
  ServerAccess server;
  DenoiseOptions loop;
  std::string output, latents_output, preview;
  std::optional<double> deadline_seconds;
  bool json = false;
};

void AddFlags(Options& options, CLI::App& app) {
  options.server.AddFlags(app, "the server");
  AddDenoiseFlags(options.loop, app);
  AddFlag(app, "save-latents", "FILE", "what latents on the way are saved to, each time anew", &options.latents_output);
  AddFlag(app, "preview", "FILE",
          "shows latents as .png, on the way too: by a linear approximation of the VAE, so only roughly what it makes",
          &options.preview);
  AddFlag(app, "output", "FILE", "saves the latents at the end as .npy or .safetensors", &options.output);
  AddFlag(app, "deadline-seconds", "S", "gives up after this (default: never)", &options.deadline_seconds);
  app.add_flag("--json", options.json, "prints JSON");
}

absl::Status CheckOptions(const Options& options) {
  const int64_t latents_every = options.loop.latents_every;
  if (latents_every > 0 && options.latents_output.empty() && options.preview.empty()) {
    return absl::InvalidArgumentError("--latents-every needs --save-latents or --preview");
  }
  if (latents_every == 0 && !options.latents_output.empty()) {
    return absl::InvalidArgumentError("--save-latents needs --latents-every");
  }
  if (absl::EndsWith(options.latents_output, ".npy") && options.loop.dtype == Name(DType::kBFloat16)) {
    return absl::InvalidArgumentError(
        "--save-latents: .npy has no bfloat16, in which the loop is to go on: name a .safetensors file");
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
    if (options.loop.step_cache) environment.out << DescribeReused(result);
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
  if (const absl::Status checked = CheckOptions(options); !checked.ok()) return Fail(checked, environment);
  const absl::StatusOr<v1::DenoiseRequest> request = MakeDenoiseRequest(options.loop);
  if (!request.ok()) return Fail(request.status(), environment);
  const Outcome outcome = Send(options, *request, environment);
  environment.err << outcome.saved;
  if (!outcome.kept.ok()) return Fail(outcome.kept, environment);
  return outcome.status.ok() ? Report(options, outcome.result, environment)
                             : Fail(outcome.status, options.server.address(), environment);
}

}  // namespace ditserve::ditctl
