// `ditctl forward`: one forward pass, from files or made-up inputs.
#include <memory>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/ditctl/client.h"
#include "client/ditctl/commands.h"
#include "client/ditctl/print.h"
#include "client/ditctl/progress.h"
#include "client/ditctl/tensors.h"
#include "client/ditctl/vram_config.h"
#include "core/status_macros.h"
#include "ditserve/v1/residency_service.grpc.pb.h"
#include "ditserve/v1/transformer_service.grpc.pb.h"

namespace ditserve::ditctl {
namespace {

constexpr int64_t kPromptChannels = 3584;
constexpr int64_t kMaxPixels = 1 << 16;
constexpr int64_t kMaxItems = 1 << 16;

// What the command line asks for.
struct Options {
  std::string address, model, profile, dtype = "bfloat16", layout = "patches", output;
  std::optional<std::string> vram_config, inputs, latents, timestep_file, prompt_emb, prompt_emb_mask;
  std::optional<double> vram_limit_gib;
  int64_t height = 1024, width = 1024, batch = 1, prompt_tokens = 5, seed = 0;
  double timestep = 0, deadline_seconds = 0, wait_seconds = 0;
  bool random = false, json = false, show_residency = false;
};

Flags MakeFlags(Options& options) {
  Flags flags("forward", "Sends one forward pass and shows its result and what it took.");
  flags.Add("address", "ADDRESS", "host:port or unix:/path of the server", &options.address);
  flags.Add("model", "NAME", "model; may be left out where the server has one", &options.model);
  flags.Add("profile", "NAME", "configured profile (see `ditctl profiles`)", &options.profile);
  flags.Add("vram-config", "JSON|FILE", "inline vram_config with DiffSynth-Studio's keys", &options.vram_config);
  flags.Add("vram-limit-gib", "GIB", "overrides the profile's limit", &options.vram_limit_gib);
  flags.Add("height", "PIXELS", "default 1024", &options.height);
  flags.Add("width", "PIXELS", "default 1024", &options.width);
  flags.Add("batch", "N", "images, for made-up inputs (default 1)", &options.batch);
  flags.Add("prompt-tokens", "N", "for made-up inputs (default 5)", &options.prompt_tokens);
  flags.Add("timestep", "T", "as the model's forward takes it (default 0)", &options.timestep);
  flags.Add("seed", "S", "decides made-up inputs (default 0)", &options.seed);
  flags.AddSwitch("random", "a fresh seed", &options.random);
  flags.Add("dtype", "DTYPE", "of made-up inputs: bfloat16 (default), float16, float32", &options.dtype);
  flags.Add("inputs", "FILE", ".safetensors with latents, timestep, prompt_emb, prompt_emb_mask", &options.inputs);
  flags.Add("latents", "FILE", ".npy or .safetensors", &options.latents);
  flags.Add("timestep-file", "FILE", ".npy or .safetensors", &options.timestep_file);
  flags.Add("prompt-emb", "FILE", ".npy or .safetensors", &options.prompt_emb);
  flags.Add("prompt-emb-mask", "FILE", ".npy or .safetensors", &options.prompt_emb_mask);
  flags.Add("output", "FILE", "saves the output as .npy or .safetensors", &options.output);
  flags.Add("layout", "LAYOUT", "patches (default) or latents", &options.layout);
  flags.Add("deadline-seconds", "S", "gives up after this (default: never)", &options.deadline_seconds);
  flags.Add("wait-seconds", "S", "first waits until the server is ready", &options.wait_seconds);
  flags.AddSwitch("show-residency", "shows where every byte is afterwards", &options.show_residency);
  flags.AddSwitch("json", "prints JSON", &options.json);
  return flags;
}

absl::StatusOr<DType> InputDType(const std::string& name) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    if (Name(dtype) == name) return dtype;
  }
  return absl::InvalidArgumentError(absl::StrCat("--dtype: expected bfloat16, float16 or float32, found '", name, "'"));
}

// Reads `name` from its own file or from the file of all inputs; nothing if neither has it.
absl::StatusOr<std::optional<v1::Tensor>> FromFiles(const Options& options, const std::optional<std::string>& file,
                                                    const std::string& name) {
  if (!file && !options.inputs) return std::optional<v1::Tensor>();
  absl::StatusOr<v1::Tensor> tensor = ReadTensor(file ? *file : *options.inputs, name);
  if (!file && absl::IsNotFound(tensor.status())) return std::optional<v1::Tensor>();
  if (!tensor.ok()) return tensor.status();
  return std::optional<v1::Tensor>(*std::move(tensor));
}

absl::Status CheckSizes(const Options& options) {
  for (const auto& [flag, value, max] :
       {std::tuple("height", options.height, kMaxPixels), std::tuple("width", options.width, kMaxPixels),
        std::tuple("batch", options.batch, kMaxItems), std::tuple("prompt-tokens", options.prompt_tokens, kMaxItems)}) {
    if (value < 1 || value > max) {
      return absl::InvalidArgumentError(absl::StrCat("--", flag, ": expected 1 to ", max, ", found ", value));
    }
  }
  return absl::OkStatus();
}

absl::Status FillInputs(const Options& options, v1::ForwardRequest& request) {
  DITSERVE_RETURN_IF_ERROR(CheckSizes(options));
  DITSERVE_ASSIGN_OR_RETURN(const DType dtype, InputDType(options.dtype));
  const uint64_t seed = options.random ? std::random_device()() : static_cast<uint64_t>(options.seed);
  DITSERVE_ASSIGN_OR_RETURN(auto latents, FromFiles(options, options.latents, "latents"));
  DITSERVE_ASSIGN_OR_RETURN(auto timestep, FromFiles(options, options.timestep_file, "timestep"));
  DITSERVE_ASSIGN_OR_RETURN(auto prompt_emb, FromFiles(options, options.prompt_emb, "prompt_emb"));
  DITSERVE_ASSIGN_OR_RETURN(auto mask, FromFiles(options, options.prompt_emb_mask, "prompt_emb_mask"));
  *request.mutable_latents() =
      latents ? *std::move(latents)
              : SeededTensor(seed, "latents", {options.batch, 16, options.height / 8, options.width / 8}, dtype);
  const int64_t batch = request.latents().shape_size() > 0 ? request.latents().shape(0) : options.batch;
  *request.mutable_timestep() =
      timestep ? *std::move(timestep) : ConstantTensor(static_cast<float>(options.timestep), {batch}, dtype);
  *request.mutable_prompt_emb() =
      prompt_emb ? *std::move(prompt_emb)
                 : SeededTensor(seed, "prompt_emb", {batch, options.prompt_tokens, kPromptChannels}, dtype);
  if (mask) *request.mutable_prompt_emb_mask() = *std::move(mask);
  return absl::OkStatus();
}

absl::StatusOr<v1::ForwardRequest> MakeRequest(const Options& options) {
  v1::ForwardRequest request;
  request.set_model(options.model);
  request.set_height(options.height);
  request.set_width(options.width);
  if (!options.profile.empty() && options.vram_config) {
    return absl::InvalidArgumentError("give either --profile or --vram-config");
  }
  if (!options.profile.empty()) request.set_profile(options.profile);
  if (options.vram_config) {
    DITSERVE_ASSIGN_OR_RETURN(*request.mutable_vram_config(), ParseVramConfig(*options.vram_config));
  }
  if (options.vram_limit_gib) request.mutable_vram_limit_gib()->set_value(*options.vram_limit_gib);
  if (options.layout != "patches" && options.layout != "latents") {
    return absl::InvalidArgumentError(
        absl::StrCat("--layout: expected patches or latents, found '", options.layout, "'"));
  }
  request.set_output_layout(options.layout == "latents" ? v1::OUTPUT_LAYOUT_LATENTS : v1::OUTPUT_LAYOUT_PATCHES);
  DITSERVE_RETURN_IF_ERROR(FillInputs(options, request));
  return request;
}

// Sends the request and shows progress until the response comes.
grpc::Status Send(const Options& options, v1::ForwardRequest request, const Environment& environment,
                  v1::ForwardResponse& response) {
  grpc::ClientContext context;
  if (options.deadline_seconds > 0) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(options.deadline_seconds)));
  }
  const CancelOnInterrupt interrupt(context, environment);
  const auto stub = v1::TransformerService::NewStub(Connect(options.address));
  v1::ForwardStreamRequest stream_request;
  *stream_request.mutable_request() = std::move(request);
  const auto reader = stub->ForwardStream(&context, stream_request);
  bool answered = false;
  {
    Progress progress(environment.err, environment.err_is_terminal, absl::Now());
    v1::ForwardStreamResponse event;
    while (reader->Read(&event)) {
      if (event.has_response()) {
        response = std::move(*event.mutable_response());
        answered = true;
      } else {
        const v1::ForwardProgress& at = event.progress();
        progress.Show(at.modules_done(), at.modules_total(),
                      absl::StrCat("module ", at.modules_done(), " of ", at.modules_total(), ", ",
                                   Bytes(at.disk_read_bytes()), " read"),
                      absl::Now());
      }
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok() || answered) return status;
  return grpc::Status(grpc::StatusCode::INTERNAL, "the server ended the stream without a response");
}

int ShowResidency(const Options& options, const Environment& environment) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(10)));
  v1::GetResidencyResponse residency;
  const grpc::Status status =
      v1::ResidencyService::NewStub(Connect(options.address))->GetResidency(&context, {}, &residency);
  if (!status.ok()) return Fail(status, options.address, environment);
  environment.out << "\n" << Describe(residency);
  return kOk;
}

}  // namespace

int Forward(const std::vector<std::string>& arguments, const Environment& environment) {
  Options options;
  options.address = environment.default_address;
  Flags flags = MakeFlags(options);
  const absl::Status parsed = flags.Parse(arguments);
  if (!parsed.ok()) return Fail(parsed, environment);
  if (flags.help()) {
    environment.out << flags.Usage();
    return kOk;
  }
  absl::StatusOr<v1::ForwardRequest> request = MakeRequest(options);
  if (!request.ok()) return Fail(request.status(), environment);
  if (options.wait_seconds > 0) {
    const absl::Status ready = WaitUntilReady(options.address, absl::Seconds(options.wait_seconds), environment);
    if (!ready.ok()) return Fail(ready, environment);
  }
  v1::ForwardResponse response;
  const grpc::Status status = Send(options, *std::move(request), environment, response);
  if (!status.ok()) return Fail(status, options.address, environment);
  if (!options.output.empty()) {
    const absl::Status written = WriteTensor(options.output, "output", response.output());
    if (!written.ok()) return Fail(written, environment);
  }
  if (options.json) {
    response.mutable_output()->clear_data();
    environment.out << ToJson(response);
  } else {
    environment.out << Describe(response.output()) << Describe(response.stats());
  }
  return options.show_residency ? ShowResidency(options, environment) : kOk;
}

}  // namespace ditserve::ditctl
