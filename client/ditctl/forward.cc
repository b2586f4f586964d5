// `ditctl forward`: one forward pass, from files or made-up inputs.
#include <memory>
#include <optional>
#include <random>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/ditctl/client.h"
#include "client/ditctl/commands.h"
#include "client/ditctl/inputs.h"
#include "client/ditctl/json.h"
#include "client/ditctl/print.h"
#include "client/ditctl/progress.h"
#include "client/ditctl/ride.h"
#include "client/ditctl/tensor_file.h"
#include "client/ditctl/tensors.h"
#include "core/base/status_macros.h"
#include "ditserve/v1/transformer_service.grpc.pb.h"

namespace ditserve::ditctl {
namespace {

constexpr absl::Duration kResidencyTimeout = absl::Seconds(10);

// What the command line asks for.
struct Options {
  ServerAccess server;
  RideOptions ride;
  InputOptions inputs;
  std::string layout = "patches", output;
  std::optional<double> deadline_seconds, wait_seconds;
  bool random = false, json = false, show_residency = false;
};

void AddFlags(Options& options, CLI::App& app) {
  options.server.AddFlags(app, "the server");
  AddRideFlags(options.ride, app);
  AddInputFlags(options.inputs, app);
  app.add_flag("--random", options.random, "a fresh seed, which is shown");
  AddFlag(app, "output", "FILE", "saves the output as .npy or .safetensors", &options.output);
  AddFlag(app, "layout", "LAYOUT", "patches (default) or latents", &options.layout);
  AddFlag(app, "deadline-seconds", "S", "gives up after this (default: never)", &options.deadline_seconds);
  AddFlag(app, "wait-seconds", "S", "first waits until the server is ready", &options.wait_seconds);
  app.add_flag("--show-residency", options.show_residency, "shows where every byte is afterwards");
  app.add_flag("--json", options.json, "prints JSON");
}

absl::Status CheckOptions(const Options& options) {
  if (options.layout != "patches" && options.layout != "latents") {
    return absl::InvalidArgumentError(
        absl::StrCat("--layout: expected patches or latents, found '", options.layout, "'"));
  }
  for (const auto& [flag, seconds] :
       {std::pair("deadline-seconds", options.deadline_seconds), std::pair("wait-seconds", options.wait_seconds)}) {
    if (seconds.value_or(1) <= 0) {
      return absl::InvalidArgumentError(absl::StrCat("--", flag, ": expected more than 0, found ", *seconds));
    }
  }
  if (options.output.empty()) return absl::OkStatus();
  const absl::Status writable = CheckWritable(options.output);
  return writable.ok() ? writable : absl::InvalidArgumentError(absl::StrCat("--output: ", writable.message()));
}

absl::StatusOr<v1::ForwardRequest> MakeRequest(const Options& options) {
  DITSERVE_RETURN_IF_ERROR(CheckOptions(options));
  v1::ForwardRequest request;
  DITSERVE_RETURN_IF_ERROR(FillRide(options.ride, request));
  request.set_output_layout(options.layout == "latents" ? v1::OUTPUT_LAYOUT_LATENTS : v1::OUTPUT_LAYOUT_PATCHES);
  DITSERVE_RETURN_IF_ERROR(FillInputs(options.inputs, request));
  return request;
}

void Show(const v1::ForwardProgress& at, Progress& progress) {
  const std::string what = at.stage() == v1::FORWARD_STAGE_QUEUED
                               ? std::string("waiting for admission")
                               : absl::StrCat("module ", at.modules_done(), " of ", at.modules_total(), ", ",
                                              Bytes(at.disk_read_bytes()), " read");
  progress.Show(at.modules_done(), at.modules_total(), what, absl::Now());
}

// Sends the request and shows progress until the response comes.
grpc::Status Send(const Options& options, v1::ForwardRequest request, const Environment& environment,
                  v1::ForwardResponse& response) {
  grpc::ClientContext context;
  if (options.deadline_seconds) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(*options.deadline_seconds)));
  }
  options.server.Authorize(context);
  const CancelOnInterrupt interrupt(context, environment);
  const auto stub = v1::TransformerService::NewStub(options.server.Connect());
  v1::ForwardStreamRequest stream_request;
  *stream_request.mutable_request() = std::move(request);
  const auto reader = stub->ForwardStream(&context, stream_request);
  bool answered = false;
  Progress progress(environment.err, environment.err_is_terminal);
  v1::ForwardStreamResponse event;
  while (reader->Read(&event)) {
    if (event.has_progress()) Show(event.progress(), progress);
    if (!event.has_response()) continue;
    response = std::move(*event.mutable_response());
    answered = true;
  }
  grpc::Status status = reader->Finish();
  if (environment.interrupted) return grpc::Status(grpc::StatusCode::CANCELLED, "interrupted");
  if (!status.ok() || answered) return status;
  return grpc::Status(grpc::StatusCode::INTERNAL, "the server ended the stream without a response");
}

grpc::Status ResidencyAfterwards(const Options& options, const Environment& environment, v1::Residency& residency) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kResidencyTimeout));
  options.server.Authorize(context);
  const CancelOnInterrupt interrupt(context, environment);
  return GetResidency(options.server, context, residency);
}

// Saves and prints the response; returns the exit code.
int Report(const Options& options, const v1::ForwardResponse& response, const Environment& environment) {
  const absl::Status sound = CheckFloating(response.output());
  if (!sound.ok()) {
    return Fail(absl::DataLossError(absl::StrCat("the server's output is damaged: ", sound.message())), environment);
  }
  if (!options.output.empty()) {
    const absl::Status written = WriteTensor(options.output, "output", response.output());
    if (!written.ok()) return Fail(written, environment);
  }
  const Statistics statistics = StatisticsOf(response.output());
  environment.err << NonFiniteWarning(statistics);
  if (!options.json) environment.out << Describe(response.output(), statistics) << Describe(response.stats());
  std::optional<v1::Residency> residency;
  if (options.show_residency) {
    const grpc::Status status = ResidencyAfterwards(options, environment, residency.emplace());
    if (!status.ok()) return Fail(status, options.server.address(), environment);
    if (!options.json) environment.out << "\n" << Describe(*residency);
  }
  if (options.json) environment.out << ForwardJson(response, statistics, residency ? &*residency : nullptr);
  return kOk;
}

}  // namespace

int Forward(const std::vector<std::string>& arguments, const Environment& environment) {
  Options options{.server = ServerAccess(environment.default_address)};
  CLI::App app("Sends one forward pass and shows its result and what it took.", "ditctl forward");
  AddFlags(options, app);
  if (const std::optional<int> ended = Parse(app, arguments, environment, &options.server)) return *ended;
  if (options.random) {
    options.inputs.seed = std::random_device()();
    environment.err << "seed " << options.inputs.seed << "\n";
  }
  absl::StatusOr<v1::ForwardRequest> request = MakeRequest(options);
  if (!request.ok()) return Fail(request.status(), environment);
  if (options.wait_seconds) {
    const absl::Status ready = WaitUntilReady(options.server, absl::Seconds(*options.wait_seconds), environment);
    if (!ready.ok()) return Fail(ready, environment);
  }
  v1::ForwardResponse response;
  const grpc::Status status = Send(options, *std::move(request), environment, response);
  return status.ok() ? Report(options, response, environment) : Fail(status, options.server.address(), environment);
}

}  // namespace ditserve::ditctl
