// `ditctl plan`: what a forward pass would take, without running it.
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/ditctl/client.h"
#include "client/ditctl/commands.h"
#include "client/ditctl/json.h"
#include "client/ditctl/print.h"
#include "client/ditctl/vram_config.h"
#include "core/base/flags.h"
#include "core/base/status_macros.h"
#include "ditserve/v1/model_service.grpc.pb.h"

namespace ditserve::ditctl {
namespace {

// Of the largest models, with all offers.
constexpr absl::Duration kTimeout = absl::Minutes(1);

// What the command line asks for.
struct Options {
  std::optional<std::string> profile, vram_config;
  std::optional<double> vram_limit_gib;
  bool known_timestep = false, json = false;
};

void AddFlags(ServerAccess& server, Options& options, v1::PlanRequest& request, int64_t& riders, CLI::App& app) {
  server.AddFlags(app, "the server");
  AddFlag(app, "model", "NAME", "model; may be left out where the server has one", request.mutable_model());
  AddFlag(app, "profile", "NAME", "configured profile (see `ditctl profiles`)", &options.profile);
  AddFlag(app, "vram-config", "JSON|FILE", "inline vram_config with DiffSynth-Studio's keys", &options.vram_config);
  AddFlag(app, "vram-limit-gib", "GIB", "overrides the profile's limit", &options.vram_limit_gib);
  AddFlag(app, "riders", "N", "such requests that come together (default 1)", &riders);
  app.add_flag("--known-timestep", options.known_timestep,
               "at timesteps that the server has seen, as of each step of a loop but the first");
  app.add_flag("--json", options.json, "prints JSON");
}

std::string TimeText(bool known, const google::protobuf::Duration& time) { return known ? Seconds(time) : "unknown"; }

std::vector<std::string> Cells(const std::string& name, const v1::PlannedPass& pass) {
  std::vector<std::string> cells = {name, TimeText(pass.has_time(), pass.time()),
                                    TimeText(pass.has_compute(), pass.compute()), Bytes(pass.disk_read_bytes()),
                                    Bytes(pass.device_copy_bytes())};
  for (const v1::MemoryUse& memory : pass.memories()) cells.push_back(Bytes(memory.peak_bytes()));
  return cells;
}

std::string DescribeMemories(const v1::PlannedPass& pass) {
  std::vector<std::vector<std::string>> rows = {{"AT ITS PEAK", "BUDGET", "WEIGHTS", "STAGING", "ACTIVATIONS", "PEAK"}};
  for (const v1::MemoryUse& memory : pass.memories()) {
    rows.push_back({MemoryName(memory), Bytes(memory.wanted_budget_bytes()), Bytes(memory.weights_bytes()),
                    Bytes(memory.staging_bytes()), Bytes(memory.activations_bytes()), Bytes(memory.peak_bytes())});
  }
  return Table(rows);
}

std::string PaceText(const v1::Pace& pace) {
  const auto speed = [](double bytes) { return absl::StrCat(Bytes(static_cast<int64_t>(bytes)), "/s"); };
  if (!pace.has_disk_bytes_per_second() && !pace.has_copy_bytes_per_second() && !pace.has_height()) {
    return "times       nothing was measured yet: send one such `ditctl forward`, then ask again\n";
  }
  const std::string unknown = "not measured";
  return absl::StrCat(
      "times       rest on computing: ",
      pace.has_height() ? absl::StrCat("measured at ", pace.width(), "x", pace.height()) : unknown,
      ", disk: ", pace.has_disk_bytes_per_second() ? speed(pace.disk_bytes_per_second()) : unknown,
      ", copies: ", pace.has_copy_bytes_per_second() ? speed(pace.copy_bytes_per_second()) : unknown,
      pace.has_fresh_bytes_per_second() ? absl::StrCat(", fresh memory: ", speed(pace.fresh_bytes_per_second())) : "",
      "\n");
}

std::string OfferText(const v1::Offer& offer) {
  if (offer.width() > 0) return absl::StrCat("--height ", offer.height(), " --width ", offer.width());
  return offer.without_limit() ? "without the limit" : absl::StrCat("--profile ", offer.profile());
}

std::string Describe(const v1::Plan& plan) {
  std::string text = absl::StrCat("takes       ", Bytes(plan.activation_bytes()), " of activations and ",
                                  Bytes(plan.window_bytes()), " to stream weights through, of device memory\n");
  const std::vector<std::string> heading = {"PASS",      "TIME",        "COMPUTING", "FROM DISK",
                                            "TO DEVICE", "DEVICE PEAK", "HOST PEAK"};
  if (!plan.refusal().empty()) {
    absl::StrAppend(&text, "refused     ", plan.refusal(), "\n");
  } else {
    absl::StrAppend(&text, PaceText(plan.pace()), "\n",
                    Table({heading, Cells("first", plan.first_pass()), Cells("repeated", plan.repeated_pass())}), "\n",
                    DescribeMemories(plan.repeated_pass()));
  }
  if (plan.offers_size() == 0) return text;
  std::vector<std::vector<std::string>> rows = {heading};
  rows.front().front() = plan.refusal().empty() ? "CHEAPER, REPEATED" : "FITS, REPEATED";
  rows.front().emplace_back("SAME WEIGHTS");
  for (const v1::Offer& offer : plan.offers()) {
    rows.push_back(Cells(OfferText(offer), offer.repeated_pass()));
    rows.back().emplace_back(offer.equal_values() ? "yes" : "rounded otherwise");
  }
  return absl::StrCat(text, "\n", Table(rows));
}

}  // namespace

int Plan(const std::vector<std::string>& arguments, const Environment& environment) {
  Options options;
  ServerAccess server(environment.default_address);
  v1::PlanRequest request;
  int64_t height = 1024, width = 1024, batch = 1, prompt_tokens = 5, riders = 1;
  CLI::App app("Tells what a forward pass would take, without running it. Exits with 1 if it would be refused.",
               "ditctl plan");
  AddFlags(server, options, request, riders, app);
  AddFlag(app, "height", "PIXELS", "default 1024", &height);
  AddFlag(app, "width", "PIXELS", "default 1024", &width);
  AddFlag(app, "batch", "N", "images (default 1)", &batch);
  AddFlag(app, "prompt-tokens", "N", "tokens of each prompt (default 5)", &prompt_tokens);
  if (const std::optional<int> ended = Parse(app, arguments, environment, &server)) return *ended;
  if (options.profile && options.vram_config) {
    return Fail(absl::InvalidArgumentError("give either --profile or --vram-config"), environment);
  }
  if (options.profile) request.set_profile(*options.profile);
  if (options.vram_config) {
    absl::StatusOr<v1::VramConfig> config = ParseVramConfig(*options.vram_config);
    if (!config.ok()) return Fail(config.status(), environment);
    *request.mutable_vram_config() = *std::move(config);
  }
  if (options.vram_limit_gib) request.set_vram_limit_gib(*options.vram_limit_gib);
  request.set_height(height);
  request.set_width(width);
  request.set_batch(batch);
  request.set_prompt_tokens(prompt_tokens);
  request.set_riders(riders);
  request.set_known_timestep(options.known_timestep);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kTimeout));
  server.Authorize(context);
  const CancelOnInterrupt interrupt(context, environment);
  v1::PlanResponse response;
  const grpc::Status status = v1::ModelService::NewStub(server.Connect())->Plan(&context, request, &response);
  if (!status.ok()) return Fail(status, server.address(), environment);
  environment.out << (options.json ? ToJson(response.plan()) : Describe(response.plan()));
  return response.plan().refusal().empty() ? kOk : kFailed;
}

}  // namespace ditserve::ditctl
