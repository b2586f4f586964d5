#ifndef DITSERVE_SERVER_CONFIG_CONFIG_H_
#define DITSERVE_SERVER_CONFIG_CONFIG_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/base/budget_spec.h"
#include "core/devices/cpu_device.h"
#include "core/placement/profile.h"
#include "server/engine/model_source.h"
#include "server/gate/tls_certificates.h"

namespace ditserve {

// A profile as written.
struct ProfileSpec {
  std::string name;
  std::string description;
  VramConfig vram_config;
  std::optional<double> vram_limit_gib;
  std::map<std::string, std::string> places;  // As YamlMap::Places.

  // But for where they were written.
  friend bool operator==(const ProfileSpec& a, const ProfileSpec& b) {
    return a.name == b.name && a.description == b.description && a.vram_config == b.vram_config &&
           a.vram_limit_gib == b.vram_limit_gib;
  }
};

// What a server is told to do. config/ditserve.yaml documents every key and holds the defaults.
struct ServerConfig {
  std::string listen_address;
  bool plaintext_from_other_machines = false;
  int64_t max_receive_message_bytes = 0;
  int max_concurrent_calls = 0;
  int max_connections = 0;
  absl::Duration max_connection_age;  // Zero: none.
  int64_t message_memory_bytes = 0;
  int64_t answer_memory_bytes = 0;
  std::string health_address;  // host:port, or "none".

  TlsFiles tls;
  std::string tokens_file;  // Empty: nobody is asked for a token.

  std::vector<std::string> devices;  // At least one.
  CpuBFloat16 bfloat16_arithmetic = CpuBFloat16::kAuto;
  int threads = 0;
  int transfer_threads = 0;

  BudgetSpec device_budget, host_budget;
  std::optional<int64_t> modulation_bytes;  // Of each device's budget; null: a part of it (server/make_engine.h).
  bool follow_pressure = false;

  std::vector<ModelSource> models;

  int max_active = 0;
  int max_queue = 0;
  int64_t max_side_pixels = 0;
  int64_t max_batch = 0;
  absl::Duration drain_timeout;
  absl::Duration idle_release;

  std::string metrics_address;  // host:port, or "none".
  std::string admin_address;    // host:port, unix:/path or "none".

  std::string log_level;
  std::string log_format;  // "text" or "json".

  std::string default_profile;
  std::string default_profile_place;  // What an error about it begins with: where it was set.
  std::vector<ProfileSpec> profiles;
};

// The defaults, with the keys of `yaml` in their place. `file` names it in errors: InvalidArgument with line, column
// and key.
absl::StatusOr<ServerConfig> ParseConfig(const std::string& yaml, const std::string& file);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_CONFIG_CONFIG_H_
