#include "server/config/command_line.h"

#include <tuple>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "core/base/budget_spec.h"
#include "core/base/flags.h"
#include "core/base/status_macros.h"
#include "server/config/config_file.h"
#include "server/config/forms.h"

namespace ditserve {
namespace {

absl::Status WrongFlag(absl::string_view flag, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(flag, ": ", what));
}

// NAME=PATH or NAME=PATH,numerics=diffusers
absl::StatusOr<ModelSource> ParseModelFlag(const std::string& text) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits('=', 1));
  ModelSource model{parts.first, parts.second};
  for (const Numerics numerics : {Numerics::kDiffSynth, Numerics::kDiffusers}) {
    const std::string suffix = absl::StrCat(",numerics=", Name(numerics));
    if (!absl::EndsWith(model.path, suffix)) continue;
    model.path.resize(model.path.size() - suffix.size());
    model.numerics = numerics;
  }
  if (!IsName(model.name)) return WrongFlag("--model", kNameForm);
  if (model.path.empty()) return WrongFlag("--model", "expected NAME=PATH");
  return model;
}

absl::Status ApplyFlags(const CommandLine& flags, ServerConfig& config) {
  if (flags.listen) config.listen_address = *flags.listen;
  if (!IsListenAddress(config.listen_address)) return WrongFlag("--listen", kListenForm);
  if (!flags.devices.empty()) config.devices = flags.devices;
  if (const std::string wrong = WrongDevices(config.devices); !wrong.empty()) return WrongFlag("--device", wrong);
  if (flags.default_profile) {
    config.default_profile = *flags.default_profile;
    config.default_profile_place = "--default-profile: ";
  }
  if (flags.metrics_listen) config.metrics_address = *flags.metrics_listen;
  if (!IsMetricsAddress(config.metrics_address)) return WrongFlag("--metrics-listen", kMetricsForm);
  if (flags.admin_listen) config.admin_address = *flags.admin_listen;
  if (!IsAdminAddress(config.admin_address)) return WrongFlag("--admin-listen", kAdminForm);
  if (flags.log_level) config.log_level = *flags.log_level;
  if (!IsLogLevel(config.log_level)) return WrongFlag("--log-level", kLogLevelForm);
  if (flags.log_format) config.log_format = *flags.log_format;
  if (!IsLogFormat(config.log_format)) return WrongFlag("--log-format", kLogFormatForm);
  for (const auto& [flag, form, text, budget] :
       {std::tuple("--device-budget", &kDeviceBudget, &flags.device_budget, &config.device_budget),
        std::tuple("--host-budget", &kHostBudget, &flags.host_budget, &config.host_budget)}) {
    if (!*text) continue;
    const std::optional<BudgetSpec> parsed = form->parse(**text);
    if (!parsed) return WrongFlag(flag, form->expected);
    *budget = *parsed;
  }
  if (!flags.models.empty()) config.models = flags.models;
  return absl::OkStatus();
}

absl::Status CheckDoors(const ServerConfig& config) {
  const auto reached = [](absl::string_view key, absl::string_view address, absl::string_view unless) {
    return absl::InvalidArgumentError(
        absl::StrCat(key, ": ", address, " can be reached from other machines: ", unless, ", or listen on 127.0.0.1"));
  };
  const bool is_open = config.tls.certificate.empty() && !config.plaintext_from_other_machines;
  if (is_open && !IsLocalAddress(config.listen_address)) {
    return reached("listen.address", config.listen_address,
                   "configure tls, or set listen.plaintext_from_other_machines where something else closes the door");
  }
  if (config.admin_address != "none" && !IsLocalAddress(config.admin_address)) {
    if (config.tokens_file.empty()) {
      return reached("admin.address", config.admin_address, "name a file of tokens in access.tokens");
    }
    if (is_open) return reached("admin.address", config.admin_address, "configure tls");
  }
  if (config.message_memory_bytes < config.max_receive_message_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("listen.message_memory: ", config.message_memory_bytes,
                                                   " bytes, less than listen.max_receive_message_bytes, ",
                                                   config.max_receive_message_bytes));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CommandLine> ParseCommandLine(absl::Span<const char* const> arguments) {
  CommandLine line;
  std::optional<std::string> config;
  std::vector<std::string> models;
  CLI::App app("Serves forward passes of diffusion transformers over gRPC.", "ditserve");
  AddFlag(app, "config", "FILE", "YAML configuration; flags override it", &config);
  AddFlag(app, "model", "NAME=PATH",
          "a model to load (repeatable; replaces the file's): a diffusers transformer folder,\n"
          "a .safetensors file, or a pattern of shards. Append ,numerics=diffusers for tanh GELU",
          &models);
  AddFlag(app, "listen", "ADDRESS", "host:port or unix:/path", &line.listen);
  AddFlag(app, "device", "DEVICE", "cpu or cuda:N; repeatable, for several of the latter", &line.devices);
  AddFlag(app, "device-budget", "BYTES", "e.g. 1536MiB or 60%, or auto", &line.device_budget);
  AddFlag(app, "host-budget", "BYTES", "e.g. 1536MiB or 60%", &line.host_budget);
  AddFlag(app, "default-profile", "NAME", "for requests that name none", &line.default_profile);
  AddFlag(app, "metrics-listen", "ADDRESS", "host:port for Prometheus, or none", &line.metrics_listen);
  AddFlag(app, "admin-listen", "ADDRESS", "host:port or unix:/path for AdminService, or none", &line.admin_listen);
  AddFlag(app, "log-level", "LEVEL", "debug, info, warn or error", &line.log_level);
  AddFlag(app, "log-format", "FORMAT", "text or json", &line.log_format);
  app.add_flag("--check", line.check,
               "validate the configuration and exit; with --device, look at each of those devices too, and tell\n"
               "what each profile would take on it");
  app.add_flag("--probe", line.probe,
               "ask the server whether it is ready, and exit: with 0 if it is. At the file's listen.health_address,\n"
               "or at --listen where that is none");
  app.add_flag("--version", line.version, "print the version and exit");
  DITSERVE_RETURN_IF_ERROR(ParseFlags(app, {arguments.begin(), arguments.end()}, &line.help));
  for (const std::string& text : models) {
    DITSERVE_ASSIGN_OR_RETURN(ModelSource source, ParseModelFlag(text));
    for (const ModelSource& other : line.models) {
      if (other.name == source.name) return WrongFlag("--model", absl::StrCat("two models are named ", other.name));
    }
    line.models.push_back(std::move(source));
  }
  if (config == "") return WrongFlag("--config", "expected a file, found ''");
  line.config_file = config.value_or("");
  return line;
}

absl::StatusOr<ServerConfig> LoadConfig(const CommandLine& command_line) {
  absl::StatusOr<std::string> text("");
  if (!command_line.config_file.empty()) text = ReadConfigFile(command_line.config_file);
  if (!text.ok()) return absl::Status(text.status().code(), absl::StrCat("--config: ", text.status().message()));
  DITSERVE_ASSIGN_OR_RETURN(ServerConfig config, ParseConfig(*text, command_line.config_file));
  DITSERVE_RETURN_IF_ERROR(ApplyFlags(command_line, config));
  DITSERVE_RETURN_IF_ERROR(CheckDoors(config));
  // A device can be looked at without a model.
  const bool needs_models = !command_line.probe && !(command_line.check && !command_line.devices.empty());
  if (config.models.empty() && needs_models) {
    return absl::InvalidArgumentError("no model is configured: give --model NAME=PATH, or 'models' in the file");
  }
  return config;
}

}  // namespace ditserve
