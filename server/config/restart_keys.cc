#include "server/config/restart_keys.h"

namespace ditserve {

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
  compare("listen.max_connection_age_seconds", &ServerConfig::max_connection_age);
  compare("listen.message_memory", &ServerConfig::message_memory_bytes);
  compare("listen.answer_memory", &ServerConfig::answer_memory_bytes);
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

}  // namespace ditserve
