#include "server/config/config.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>

#include "core/base/budget_spec.h"
#include "core/base/size.h"
#include "core/base/status_macros.h"
#include "server/config/default_config.h"
#include "server/config/forms.h"
#include "server/config/yaml_map.h"

namespace ditserve {
namespace {

constexpr int kMaxSeconds = 30 * 24 * 3600;

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
  int age = static_cast<int>(absl::ToInt64Seconds(config.max_connection_age));
  DITSERVE_RETURN_IF_ERROR(map.ReadString("address", &config.listen_address));
  if (!IsListenAddress(config.listen_address)) return map.Wrong("address", kListenForm);
  DITSERVE_RETURN_IF_ERROR(ReadBool(map, "plaintext_from_other_machines", &config.plaintext_from_other_machines));
  DITSERVE_RETURN_IF_ERROR(ReadBytes(map, "max_receive_message_bytes", 1, INT32_MAX,
                                     "expected 1 to 2147483647 bytes, with KiB, MiB or GiB",
                                     &config.max_receive_message_bytes));
  DITSERVE_RETURN_IF_ERROR(map.ReadInteger("max_concurrent_calls", 1, 1 << 20, &config.max_concurrent_calls));
  DITSERVE_RETURN_IF_ERROR(map.ReadInteger("max_connections", 1, 1 << 20, &config.max_connections));
  DITSERVE_RETURN_IF_ERROR(map.ReadInteger("max_connection_age_seconds", 0, kMaxSeconds, &age));
  config.max_connection_age = absl::Seconds(age);
  DITSERVE_RETURN_IF_ERROR(ReadBytes(map, "message_memory", 1, kMaxSizeBytes,
                                     "expected 1 to 2^50 bytes, with KiB, MiB or GiB", &config.message_memory_bytes));
  DITSERVE_RETURN_IF_ERROR(ReadBytes(map, "answer_memory", 1, kMaxSizeBytes,
                                     "expected 1 to 2^50 bytes, with KiB, MiB or GiB", &config.answer_memory_bytes));
  DITSERVE_RETURN_IF_ERROR(map.ReadString("health_address", &config.health_address));
  if (!IsMetricsAddress(config.health_address)) return map.Wrong("health_address", kMetricsForm);
  return map.RefuseOthers();
}

absl::Status ReadTls(YamlMap& map, ServerConfig& config) {
  TlsFiles& tls = config.tls;
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

absl::Status ReadAccess(YamlMap& map, ServerConfig& config) {
  DITSERVE_RETURN_IF_ERROR(map.ReadString("tokens", &config.tokens_file));
  return map.RefuseOthers();
}

absl::Status ReadAdmin(YamlMap& map, ServerConfig& config) {
  DITSERVE_RETURN_IF_ERROR(map.ReadString("address", &config.admin_address));
  if (!IsAdminAddress(config.admin_address)) return map.Wrong("address", kAdminForm);
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

absl::Status ReadBudget(YamlMap& map, const std::string& key, const BudgetForm& form, BudgetSpec& budget) {
  std::optional<std::string> text;
  DITSERVE_RETURN_IF_ERROR(map.ReadString(key, &text));
  if (!text) return absl::OkStatus();
  const std::optional<BudgetSpec> parsed = form.parse(*text);
  if (!parsed) return map.Wrong(key, form.expected);
  budget = *parsed;
  return absl::OkStatus();
}

// Null for auto.
absl::Status ReadBytesOrAuto(YamlMap& map, const char* key, std::optional<int64_t>* bytes) {
  std::optional<std::string> text;
  DITSERVE_RETURN_IF_ERROR(map.ReadString(key, &text));
  if (!text) return absl::OkStatus();
  *bytes = *text == "auto" ? std::nullopt : ParseSize(*text);
  if (*text == "auto" || *bytes) return absl::OkStatus();
  return map.Wrong(key, "expected auto, or 0 to 2^50 bytes, with KiB, MiB or GiB");
}

absl::Status ReadMemory(YamlMap& map, ServerConfig& config) {
  DITSERVE_RETURN_IF_ERROR(ReadBudget(map, "device_budget", kDeviceBudget, config.device_budget));
  DITSERVE_RETURN_IF_ERROR(ReadBudget(map, "host_budget", kHostBudget, config.host_budget));
  DITSERVE_RETURN_IF_ERROR(ReadBytesOrAuto(map, "modulation", &config.modulation_bytes));
  DITSERVE_RETURN_IF_ERROR(ReadBool(map, "follow_pressure", &config.follow_pressure));
  return map.RefuseOthers();
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

absl::Status ReadMetrics(YamlMap& map, ServerConfig& config) {
  DITSERVE_RETURN_IF_ERROR(map.ReadString("address", &config.metrics_address));
  if (!IsMetricsAddress(config.metrics_address)) return map.Wrong("address", kMetricsForm);
  return map.RefuseOthers();
}

absl::Status ReadLog(YamlMap& map, ServerConfig& config) {
  DITSERVE_RETURN_IF_ERROR(map.ReadString("level", &config.log_level));
  if (!IsLogLevel(config.log_level)) return map.Wrong("level", kLogLevelForm);
  DITSERVE_RETURN_IF_ERROR(map.ReadString("format", &config.log_format));
  if (!IsLogFormat(config.log_format)) return map.Wrong("format", kLogFormatForm);
  return map.RefuseOthers();
}

absl::Status ReadDefaultProfile(YamlMap& document, ServerConfig& config) {
  const std::map<std::string, std::string> places = document.Places();
  const auto place = places.find("default_profile");
  if (place != places.end()) config.default_profile_place = place->second;
  return document.ReadString("default_profile", &config.default_profile);
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

absl::Status ReadProfiles(YamlMap& map, ServerConfig& config) {
  return map.ReadEach([&](const std::string& name, YamlMap& profile) { return ReadProfile(name, profile, config); });
}

// Puts the keys of `yaml` in the place of what `config` holds. Models are added; profiles added, or replaced by name.
absl::Status Apply(const std::string& yaml, const std::string& file, ServerConfig& config) {
  DITSERVE_ASSIGN_OR_RETURN(YamlMap document, YamlMap::Parse(yaml, file));
  using Reader = absl::Status (*)(YamlMap&, ServerConfig&);
  const auto read = [&](const char* section, Reader reader) {
    return document.ReadMap(section, [&](YamlMap& map) { return reader(map, config); });
  };
  DITSERVE_RETURN_IF_ERROR(read("listen", ReadListen));
  DITSERVE_RETURN_IF_ERROR(read("tls", ReadTls));
  DITSERVE_RETURN_IF_ERROR(read("access", ReadAccess));
  DITSERVE_RETURN_IF_ERROR(read("admin", ReadAdmin));
  DITSERVE_RETURN_IF_ERROR(read("device", ReadDevice));
  DITSERVE_RETURN_IF_ERROR(read("memory", ReadMemory));
  DITSERVE_RETURN_IF_ERROR(document.ReadList("models", [&](YamlMap& map) { return ReadModel(map, config); }));
  DITSERVE_RETURN_IF_ERROR(read("requests", ReadRequests));
  DITSERVE_RETURN_IF_ERROR(read("metrics", ReadMetrics));
  DITSERVE_RETURN_IF_ERROR(read("log", ReadLog));
  DITSERVE_RETURN_IF_ERROR(ReadDefaultProfile(document, config));
  DITSERVE_RETURN_IF_ERROR(read("profiles", ReadProfiles));
  return document.RefuseOthers();
}

}  // namespace

absl::StatusOr<ServerConfig> ParseConfig(const std::string& yaml, const std::string& file) {
  ServerConfig config;
  DITSERVE_RETURN_IF_ERROR(Apply(kDefaultConfig, "defaults", config));
  DITSERVE_RETURN_IF_ERROR(Apply(yaml, file, config));
  return config;
}

}  // namespace ditserve
