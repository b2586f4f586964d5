#include "server/config/config.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <tuple>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "core/base/budget_spec.h"
#include "core/base/flags.h"
#include "core/base/size.h"
#include "core/base/status_macros.h"
#include "server/config/config_file.h"
#include "server/config/default_config.h"
#include "server/config/forms.h"
#include "server/config/yaml_map.h"

namespace ditserve {
namespace {

constexpr int kMaxSeconds = 30 * 24 * 3600;

// Runs each reader in turn up to the first error.
template <typename... Readers>
absl::Status InTurn(Readers... readers) {
  absl::Status status;
  static_cast<void>(((status = readers(), status.ok()) && ...));
  return status;
}

absl::Status ReadBool(YamlMap& map, const char* key, bool* value) {
  std::optional<std::string> text;
  DITSERVE_RETURN_IF_ERROR(map.ReadString(key, &text));
  if (!text) return absl::OkStatus();
  if (*text != "true" && *text != "false") return map.Wrong(key, "expected true or false");
  *value = *text == "true";
  return absl::OkStatus();
}

absl::Status ReadBytes(YamlMap& map, const char* key, int64_t least, int64_t most, absl::string_view form,
                       int64_t* bytes) {
  std::optional<std::string> text;
  DITSERVE_RETURN_IF_ERROR(map.ReadString(key, &text));
  if (!text) return absl::OkStatus();
  const std::optional<int64_t> parsed = ParseSize(*text);
  if (!parsed || *parsed < least || *parsed > most) return map.Wrong(key, form);
  *bytes = *parsed;
  return absl::OkStatus();
}

absl::Status ReadListen(YamlMap& map, ServerConfig& config) {
  return InTurn(
      [&] { return map.ReadString("address", &config.listen_address); },
      [&] { return IsListenAddress(config.listen_address) ? absl::OkStatus() : map.Wrong("address", kListenForm); },
      [&] { return ReadBool(map, "plaintext_from_other_machines", &config.plaintext_from_other_machines); },
      [&] {
        return ReadBytes(map, "max_receive_message_bytes", 1, INT32_MAX,
                         "expected 1 to 2147483647 bytes, with KiB, MiB or GiB", &config.max_receive_message_bytes);
      },
      [&] { return map.ReadInteger("max_concurrent_calls", 1, 1 << 20, &config.max_concurrent_calls); },
      [&] { return map.ReadInteger("max_connections", 1, 1 << 20, &config.max_connections); },
      [&] {
        return ReadBytes(map, "message_memory", 1, kMaxSizeBytes, "expected 1 to 2^50 bytes, with KiB, MiB or GiB",
                         &config.message_memory_bytes);
      },
      [&] { return map.ReadString("health_address", &config.health_address); },
      [&] {
        return IsMetricsAddress(config.health_address) ? absl::OkStatus() : map.Wrong("health_address", kMetricsForm);
      },
      [&] { return map.RefuseOthers(); });
}

absl::Status ReadTls(YamlMap& map, TlsFiles& tls) {
  DITSERVE_RETURN_IF_ERROR(map.ReadString("certificate", &tls.certificate));
  DITSERVE_RETURN_IF_ERROR(map.ReadString("private_key", &tls.private_key));
  DITSERVE_RETURN_IF_ERROR(map.ReadString("client_ca", &tls.client_ca));
  if (tls.certificate.empty() != tls.private_key.empty()) {
    return map.Wrong(tls.certificate.empty() ? "certificate" : "private_key", "the other of the two is given");
  }
  if (!tls.client_ca.empty() && tls.certificate.empty()) {
    return map.Wrong("certificate", "client_ca is given: a server has to show a certificate too");
  }
  return map.RefuseOthers();
}

absl::Status ReadDevice(YamlMap& map, ServerConfig& config) {
  std::optional<std::string> arithmetic;
  DITSERVE_RETURN_IF_ERROR(map.ReadOneOrMore("name", &config.devices));
  if (const std::string wrong = WrongDevices(config.devices); !wrong.empty()) return map.Wrong("name", wrong);
  DITSERVE_RETURN_IF_ERROR(map.ReadString("bfloat16_arithmetic", &arithmetic));
  if (arithmetic == "auto") {
    config.bfloat16_arithmetic = CpuBFloat16::kAuto;
  } else if (arithmetic == "native") {
    config.bfloat16_arithmetic = CpuBFloat16::kNative;
  } else if (arithmetic == "float32") {
    config.bfloat16_arithmetic = CpuBFloat16::kFloat32;
  } else if (arithmetic) {
    return map.Wrong("bfloat16_arithmetic", "expected auto, native or float32");
  }
  DITSERVE_RETURN_IF_ERROR(map.ReadInteger("threads", 0, 1024, &config.threads));
  DITSERVE_RETURN_IF_ERROR(map.ReadInteger("transfer_threads", 1, 64, &config.transfer_threads));
  return map.RefuseOthers();
}

// How a budget is written, and what is said of one that is not so.
struct BudgetForm {
  std::optional<BudgetSpec> (*parse)(absl::string_view);
  absl::string_view expected;
};
constexpr BudgetForm kOfDevice = {ParseDeviceBudget, kDeviceBudgetForm}, kOfHost = {ParseBudget, kBudgetForm};

absl::Status ReadBudget(YamlMap& map, const std::string& key, const BudgetForm& form, BudgetSpec& budget) {
  std::optional<std::string> text;
  DITSERVE_RETURN_IF_ERROR(map.ReadString(key, &text));
  if (!text) return absl::OkStatus();
  const std::optional<BudgetSpec> parsed = form.parse(*text);
  if (!parsed) return map.Wrong(key, form.expected);
  budget = *parsed;
  return absl::OkStatus();
}

absl::Status ReadModel(YamlMap& map, ServerConfig& config) {
  ModelSource model;
  std::string type = "QwenImageDiT", numerics(Name(model.numerics));
  DITSERVE_RETURN_IF_ERROR(map.ReadString("name", &model.name));
  DITSERVE_RETURN_IF_ERROR(map.ReadString("path", &model.path));
  DITSERVE_RETURN_IF_ERROR(map.ReadString("type", &type));
  DITSERVE_RETURN_IF_ERROR(map.ReadString("numerics", &numerics));
  if (!IsName(model.name)) return map.Wrong("name", kNameForm);
  if (model.path.empty()) return map.Wrong("path", "expected a folder, a .safetensors file or a pattern of shards");
  if (type != "QwenImageDiT") return map.Wrong("type", "expected QwenImageDiT");
  const std::optional<Numerics> parsed = NumericsFromName(numerics);
  if (!parsed) return map.Wrong("numerics", "expected diffsynth or diffusers");
  model.numerics = *parsed;
  for (const ModelSource& other : config.models) {
    if (other.name == model.name) return map.Wrong("name", "another model has this name");
  }
  config.models.push_back(std::move(model));
  return map.RefuseOthers();
}

absl::Status ReadRequests(YamlMap& map, ServerConfig& config) {
  int drain = static_cast<int>(absl::ToInt64Seconds(config.drain_timeout));
  int idle = static_cast<int>(absl::ToInt64Seconds(config.idle_release));
  DITSERVE_RETURN_IF_ERROR(map.ReadInteger("max_active", 1, 4096, &config.max_active));
  DITSERVE_RETURN_IF_ERROR(map.ReadInteger("max_queue", 0, 1 << 20, &config.max_queue));
  DITSERVE_RETURN_IF_ERROR(map.ReadInteger("max_side_pixels", 16, 1 << 16, &config.max_side_pixels));
  DITSERVE_RETURN_IF_ERROR(map.ReadInteger("max_batch", 1, 1024, &config.max_batch));
  DITSERVE_RETURN_IF_ERROR(map.ReadInteger("drain_timeout_seconds", 0, kMaxSeconds, &drain));
  DITSERVE_RETURN_IF_ERROR(map.ReadInteger("idle_release_seconds", 0, kMaxSeconds, &idle));
  config.drain_timeout = absl::Seconds(drain);
  config.idle_release = absl::Seconds(idle);
  return map.RefuseOthers();
}

absl::Status ReadProfile(const std::string& name, YamlMap& map, ServerConfig& config) {
  if (!IsName(name)) return map.Wrong("", kNameForm);
  ProfileSpec spec{name};
  spec.places = map.Places();
  VramConfig& vram = spec.vram_config;
  DITSERVE_RETURN_IF_ERROR(map.ReadString("description", &spec.description));
  for (const auto& [key, target] :
       {std::pair("offload_dtype", &vram.offload_dtype), std::pair("offload_device", &vram.offload_device),
        std::pair("onload_dtype", &vram.onload_dtype), std::pair("onload_device", &vram.onload_device),
        std::pair("preparing_dtype", &vram.preparing_dtype), std::pair("preparing_device", &vram.preparing_device),
        std::pair("computation_dtype", &vram.computation_dtype),
        std::pair("computation_device", &vram.computation_device)}) {
    DITSERVE_RETURN_IF_ERROR(map.ReadNullableString(key, target));
  }
  DITSERVE_RETURN_IF_ERROR(map.ReadMap("module_map", [&](YamlMap& types) {
    return types.ReadScalars([&](const std::string& type, const std::string& wrapper) {
      vram.module_map[type] = wrapper;
      return absl::OkStatus();
    });
  }));
  DITSERVE_RETURN_IF_ERROR(map.ReadNumber("vram_limit_gib", 0, 1 << 20, &spec.vram_limit_gib));
  DITSERVE_RETURN_IF_ERROR(map.RefuseOthers());
  const auto same = std::find_if(config.profiles.begin(), config.profiles.end(),
                                 [&](const ProfileSpec& other) { return other.name == name; });
  if (same != config.profiles.end()) {
    *same = std::move(spec);
  } else {
    config.profiles.push_back(std::move(spec));
  }
  return absl::OkStatus();
}

// Puts the keys of `yaml` in the place of what `config` holds. Models are added; profiles added, or replaced by name.
absl::Status Apply(const std::string& yaml, const std::string& file, ServerConfig& config) {
  DITSERVE_ASSIGN_OR_RETURN(YamlMap document, YamlMap::Parse(yaml, file));
  return InTurn(
      [&] { return document.ReadMap("listen", [&](YamlMap& map) { return ReadListen(map, config); }); },
      [&] { return document.ReadMap("tls", [&](YamlMap& map) { return ReadTls(map, config.tls); }); },
      [&] {
        return document.ReadMap("access", [&](YamlMap& map) {
          DITSERVE_RETURN_IF_ERROR(map.ReadString("tokens", &config.tokens_file));
          return map.RefuseOthers();
        });
      },
      [&] {
        return document.ReadMap("admin", [&](YamlMap& map) {
          DITSERVE_RETURN_IF_ERROR(map.ReadString("address", &config.admin_address));
          if (!IsAdminAddress(config.admin_address)) return map.Wrong("address", kAdminForm);
          return map.RefuseOthers();
        });
      },
      [&] { return document.ReadMap("device", [&](YamlMap& map) { return ReadDevice(map, config); }); },
      [&] {
        return document.ReadMap("memory", [&](YamlMap& map) {
          return InTurn([&] { return ReadBudget(map, "device_budget", kOfDevice, config.device_budget); },
                        [&] { return ReadBudget(map, "host_budget", kOfHost, config.host_budget); },
                        [&] {
                          return ReadBytes(map, "modulation", 0, kMaxSizeBytes,
                                           "expected 0 to 2^50 bytes, with KiB, MiB or GiB", &config.modulation_bytes);
                        },
                        [&] { return ReadBool(map, "follow_pressure", &config.follow_pressure); },
                        [&] { return map.RefuseOthers(); });
        });
      },
      [&] { return document.ReadList("models", [&](YamlMap& map) { return ReadModel(map, config); }); },
      [&] { return document.ReadMap("requests", [&](YamlMap& map) { return ReadRequests(map, config); }); },
      [&] {
        return document.ReadMap("metrics", [&](YamlMap& map) {
          DITSERVE_RETURN_IF_ERROR(map.ReadString("address", &config.metrics_address));
          return IsMetricsAddress(config.metrics_address) ? map.RefuseOthers() : map.Wrong("address", kMetricsForm);
        });
      },
      [&] {
        return document.ReadMap("log", [&](YamlMap& map) {
          DITSERVE_RETURN_IF_ERROR(map.ReadString("level", &config.log_level));
          if (!IsLogLevel(config.log_level)) return map.Wrong("level", kLogLevelForm);
          DITSERVE_RETURN_IF_ERROR(map.ReadString("format", &config.log_format));
          return IsLogFormat(config.log_format) ? map.RefuseOthers() : map.Wrong("format", kLogFormatForm);
        });
      },
      [&] {
        const std::map<std::string, std::string> places = document.Places();
        const auto place = places.find("default_profile");
        if (place != places.end()) config.default_profile_place = place->second;
        return document.ReadString("default_profile", &config.default_profile);
      },
      [&] {
        return document.ReadMap("profiles", [&](YamlMap& map) {
          return map.ReadEach(
              [&](const std::string& name, YamlMap& profile) { return ReadProfile(name, profile, config); });
        });
      },
      [&] { return document.RefuseOthers(); });
}

absl::Status WrongFlag(absl::string_view flag, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(flag, ": ", what));
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
       {std::tuple("--device-budget", &kOfDevice, &flags.device_budget, &config.device_budget),
        std::tuple("--host-budget", &kOfHost, &flags.host_budget, &config.host_budget)}) {
    if (!*text) continue;
    const std::optional<BudgetSpec> parsed = form->parse(**text);
    if (!parsed) return WrongFlag(flag, form->expected);
    *budget = *parsed;
  }
  if (!flags.models.empty()) config.models = flags.models;
  return absl::OkStatus();
}

// An error of the profile at `path`, which begins with the path of a key, with the key's place in front; the profile's
// own where the key is not there.
absl::Status WithPlace(const absl::Status& error, const std::string& path,
                       const std::map<std::string, std::string>& places) {
  absl::string_view rest(error.message().data(), error.message().size());
  if (!absl::ConsumePrefix(&rest, path + ".")) return error;
  const absl::string_view key = rest.substr(0, rest.find_first_of(":."));
  const auto place = places.find(std::string(key));
  if (place != places.end()) {
    return absl::Status(error.code(), absl::StrCat(absl::StripSuffix(place->second, ": "), rest.substr(key.size())));
  }
  const auto own = places.find("");
  if (own == places.end()) return error;
  return absl::Status(error.code(), absl::StrCat(absl::StripSuffix(own->second, path + ": "), error.message()));
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
  app.add_flag("--probe", line.probe, "ask the server at --listen whether it is ready, and exit: with 0 if it is");
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

absl::StatusOr<ServerConfig> ParseConfig(const std::string& yaml, const std::string& file) {
  ServerConfig config;
  DITSERVE_RETURN_IF_ERROR(Apply(kDefaultConfig, "defaults", config));
  DITSERVE_RETURN_IF_ERROR(Apply(yaml, file, config));
  return config;
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

std::vector<std::string> KeysThatNeedARestart(const ServerConfig& running, const ServerConfig& wanted) {
  std::vector<std::string> keys;
  const auto compare = [&](const char* key, auto ServerConfig::*value) {
    if (!(running.*value == wanted.*value)) keys.emplace_back(key);
  };
  compare("listen.address", &ServerConfig::listen_address);
  compare("listen.max_receive_message_bytes", &ServerConfig::max_receive_message_bytes);
  compare("listen.plaintext_from_other_machines", &ServerConfig::plaintext_from_other_machines);
  compare("listen.max_concurrent_calls", &ServerConfig::max_concurrent_calls);
  compare("listen.max_connections", &ServerConfig::max_connections);
  compare("listen.message_memory", &ServerConfig::message_memory_bytes);
  compare("listen.health_address", &ServerConfig::health_address);
  compare("tls", &ServerConfig::tls);
  compare("device.name", &ServerConfig::devices);
  compare("device.bfloat16_arithmetic", &ServerConfig::bfloat16_arithmetic);
  compare("device.threads", &ServerConfig::threads);
  compare("device.transfer_threads", &ServerConfig::transfer_threads);
  compare("memory.follow_pressure", &ServerConfig::follow_pressure);
  compare("memory.modulation", &ServerConfig::modulation_bytes);
  compare("models", &ServerConfig::models);
  compare("requests.max_active", &ServerConfig::max_active);
  compare("requests.max_queue", &ServerConfig::max_queue);
  compare("requests.max_side_pixels", &ServerConfig::max_side_pixels);
  compare("requests.max_batch", &ServerConfig::max_batch);
  compare("requests.drain_timeout_seconds", &ServerConfig::drain_timeout);
  compare("requests.idle_release_seconds", &ServerConfig::idle_release);
  compare("admin.address", &ServerConfig::admin_address);
  compare("access.tokens", &ServerConfig::tokens_file);
  compare("metrics.address", &ServerConfig::metrics_address);
  compare("log.format", &ServerConfig::log_format);
  compare("default_profile", &ServerConfig::default_profile);
  compare("profiles", &ServerConfig::profiles);
  return keys;
}

absl::StatusOr<ProfileCatalogue> MakeCatalogue(const ServerConfig& config) {
  ProfileCatalogue catalogue;
  catalogue.target = {config.devices, {"Linear", "RMSNorm"}};
  catalogue.default_profile = config.default_profile;
  std::vector<std::string> names;
  for (const ProfileSpec& spec : config.profiles) {
    const std::string path = "profiles." + spec.name;
    absl::StatusOr<Profile> profile =
        ResolveProfile(spec.name, spec.vram_config, spec.vram_limit_gib, catalogue.target, path);
    if (!profile.ok()) return WithPlace(profile.status(), path, spec.places);
    profile->description = spec.description;
    catalogue.profiles.push_back(*std::move(profile));
    names.push_back(spec.name);
  }
  if (std::find(names.begin(), names.end(), config.default_profile) == names.end()) {
    return absl::NotFoundError(absl::StrCat(config.default_profile_place, "no profile is named '",
                                            config.default_profile, "'; there are: ", absl::StrJoin(names, ", ")));
  }
  return catalogue;
}

}  // namespace ditserve
