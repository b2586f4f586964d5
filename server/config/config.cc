#include "server/config/config.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "core/base/budget_spec.h"
#include "core/base/flags.h"
#include "core/base/size.h"
#include "core/base/status_macros.h"
#include "core/storage/file.h"
#include "server/config/default_config.h"
#include "server/config/yaml_map.h"

namespace ditserve {
namespace {

constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr int kMaxSeconds = 30 * 24 * 3600;

// host:port or unix:/path; a path has at most what sockaddr_un takes.
bool IsListenAddress(absl::string_view address) {
  constexpr size_t kMaxUnixPath = 107;
  if (absl::ConsumePrefix(&address, "unix:")) return absl::StartsWith(address, "/") && address.size() <= kMaxUnixPath;
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) return false;
  const absl::string_view port = address.substr(colon + 1);
  int number = 0;
  return !port.empty() && port.size() <= 5 && std::all_of(port.begin(), port.end(), absl::ascii_isdigit) &&
         absl::SimpleAtoi(port, &number) && number <= 65535;
}
// host:port or "none".
bool IsMetricsAddress(absl::string_view address) {
  return address == "none" || (!absl::StartsWith(address, "unix:") && IsListenAddress(address));
}
constexpr absl::string_view kMetricsForm = "expected host:port with a port from 0 to 65535, or none";

constexpr absl::string_view kListenForm =
    "expected host:port with a port from 0 to 65535, or unix:/path of at most 107 bytes";

// Names appear in URLs, metrics and logs.
bool IsName(absl::string_view name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
  });
}
constexpr absl::string_view kNameForm = "a name has 1 to 64 letters, digits, '.', '_' or '-'";

bool IsDevice(absl::string_view device) { return device == "cpu" || (device != "cuda" && IsCudaDevice(device)); }
constexpr absl::string_view kDeviceForm = "expected cpu or cuda:N";

bool IsLogLevel(absl::string_view level) {
  return level == "debug" || level == "info" || level == "warn" || level == "error";
}
constexpr absl::string_view kLogLevelForm = "expected debug, info, warn or error";

// Runs each reader in turn up to the first error.
template <typename... Readers>
absl::Status InTurn(Readers... readers) {
  absl::Status status;
  static_cast<void>(((status = readers(), status.ok()) && ...));
  return status;
}

absl::Status ReadListen(YamlMap& map, ServerConfig& config) {
  std::optional<std::string> bytes;
  DITSERVE_RETURN_IF_ERROR(map.ReadString("address", &config.listen_address));
  if (!IsListenAddress(config.listen_address)) return map.Wrong("address", kListenForm);
  DITSERVE_RETURN_IF_ERROR(map.ReadString("max_receive_message_bytes", &bytes));
  if (bytes) {
    const std::optional<int64_t> parsed = ParseSize(*bytes);
    if (!parsed || *parsed < 1 || *parsed > INT32_MAX) {
      return map.Wrong("max_receive_message_bytes", "expected 1 to 2147483647 bytes, with KiB, MiB or GiB");
    }
    config.max_receive_message_bytes = *parsed;
  }
  DITSERVE_RETURN_IF_ERROR(map.ReadInteger("max_concurrent_calls", 1, 1 << 20, &config.max_concurrent_calls));
  return map.RefuseOthers();
}

absl::Status ReadDevice(YamlMap& map, ServerConfig& config) {
  std::optional<std::string> arithmetic;
  DITSERVE_RETURN_IF_ERROR(map.ReadString("name", &config.device));
  if (!IsDevice(config.device)) return map.Wrong("name", kDeviceForm);
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

absl::Status ReadBudget(YamlMap& map, const std::string& key, BudgetSpec& budget) {
  std::optional<std::string> text;
  DITSERVE_RETURN_IF_ERROR(map.ReadString(key, &text));
  if (!text) return absl::OkStatus();
  const std::optional<BudgetSpec> parsed = ParseBudget(*text);
  if (!parsed) return map.Wrong(key, kBudgetForm);
  budget = *parsed;
  return absl::OkStatus();
}

absl::Status ReadFollowPressure(YamlMap& map, ServerConfig& config) {
  std::optional<std::string> text;
  DITSERVE_RETURN_IF_ERROR(map.ReadString("follow_pressure", &text));
  if (!text) return absl::OkStatus();
  if (*text != "true" && *text != "false") return map.Wrong("follow_pressure", "expected true or false");
  config.follow_pressure = *text == "true";
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
  return InTurn([&] { return document.ReadMap("listen", [&](YamlMap& map) { return ReadListen(map, config); }); },
                [&] { return document.ReadMap("device", [&](YamlMap& map) { return ReadDevice(map, config); }); },
                [&] {
                  return document.ReadMap("memory", [&](YamlMap& map) {
                    return InTurn([&] { return ReadBudget(map, "device_budget", config.device_budget); },
                                  [&] { return ReadBudget(map, "host_budget", config.host_budget); },
                                  [&] { return ReadFollowPressure(map, config); }, [&] { return map.RefuseOthers(); });
                  });
                },
                [&] { return document.ReadList("models", [&](YamlMap& map) { return ReadModel(map, config); }); },
                [&] { return document.ReadMap("requests", [&](YamlMap& map) { return ReadRequests(map, config); }); },
                [&] {
                  return document.ReadMap("metrics", [&](YamlMap& map) {
                    DITSERVE_RETURN_IF_ERROR(map.ReadString("address", &config.metrics_address));
                    return IsMetricsAddress(config.metrics_address) ? map.RefuseOthers()
                                                                    : map.Wrong("address", kMetricsForm);
                  });
                },
                [&] {
                  return document.ReadMap("log", [&](YamlMap& map) {
                    DITSERVE_RETURN_IF_ERROR(map.ReadString("level", &config.log_level));
                    return IsLogLevel(config.log_level) ? map.RefuseOthers() : map.Wrong("level", kLogLevelForm);
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

absl::Status ReadConfigFile(const std::string& path, std::string& text) {
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<File> file, File::Open(path));
  if (file->size_bytes() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file->name(), ": ", file->size_bytes(), " bytes; expected at most ", kMaxConfigBytes));
  }
  text.resize(static_cast<size_t>(file->size_bytes()));
  return file->ReadAt(0, absl::MakeSpan(reinterpret_cast<std::byte*>(text.data()), text.size()));
}

absl::Status ApplyFlags(const CommandLine& flags, ServerConfig& config) {
  if (flags.listen) config.listen_address = *flags.listen;
  if (!IsListenAddress(config.listen_address)) return WrongFlag("--listen", kListenForm);
  if (flags.device) config.device = *flags.device;
  if (!IsDevice(config.device)) return WrongFlag("--device", kDeviceForm);
  if (flags.default_profile) {
    config.default_profile = *flags.default_profile;
    config.default_profile_place = "--default-profile: ";
  }
  if (flags.metrics_listen) config.metrics_address = *flags.metrics_listen;
  if (!IsMetricsAddress(config.metrics_address)) return WrongFlag("--metrics-listen", kMetricsForm);
  if (flags.log_level) config.log_level = *flags.log_level;
  if (!IsLogLevel(config.log_level)) return WrongFlag("--log-level", kLogLevelForm);
  for (const auto& [flag, text, budget] : {std::tuple("--device-budget", &flags.device_budget, &config.device_budget),
                                           std::tuple("--host-budget", &flags.host_budget, &config.host_budget)}) {
    if (!*text) continue;
    const std::optional<BudgetSpec> parsed = ParseBudget(**text);
    if (!parsed) return WrongFlag(flag, kBudgetForm);
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
  AddFlag(app, "device", "DEVICE", "cpu or cuda:N", &line.device);
  AddFlag(app, "device-budget", "BYTES", "e.g. 1536MiB or 60%", &line.device_budget);
  AddFlag(app, "host-budget", "BYTES", "e.g. 1536MiB or 60%", &line.host_budget);
  AddFlag(app, "default-profile", "NAME", "for requests that name none", &line.default_profile);
  AddFlag(app, "metrics-listen", "ADDRESS", "host:port for Prometheus, or none", &line.metrics_listen);
  AddFlag(app, "log-level", "LEVEL", "debug, info, warn or error", &line.log_level);
  app.add_flag("--check", line.check, "validate the configuration and exit");
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
  std::string text;
  if (!command_line.config_file.empty()) {
    const absl::Status read = ReadConfigFile(command_line.config_file, text);
    if (!read.ok()) {
      // It names the file without its folder, for it does not know who reads.
      const std::filesystem::path folder = std::filesystem::path(command_line.config_file).parent_path();
      return absl::Status(read.code(), absl::StrCat("--config: ", (folder / std::string(read.message())).string()));
    }
  }
  DITSERVE_ASSIGN_OR_RETURN(ServerConfig config, ParseConfig(text, command_line.config_file));
  DITSERVE_RETURN_IF_ERROR(ApplyFlags(command_line, config));
  if (config.models.empty()) {
    return absl::InvalidArgumentError("no model is configured: give --model NAME=PATH, or 'models' in the file");
  }
  return config;
}

absl::StatusOr<ProfileCatalogue> MakeCatalogue(const ServerConfig& config) {
  ProfileCatalogue catalogue;
  catalogue.target = {config.device, {"Linear", "RMSNorm"}};
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
