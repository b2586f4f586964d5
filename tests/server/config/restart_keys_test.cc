#include "server/config/restart_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "server/config/config.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

absl::StatusOr<ServerConfig> Parse(const std::string& yaml) { return ParseConfig(yaml, "c.yaml"); }

// Each key with a value that is not its default's.
TEST(RestartKeysTest, KnowsWhichKeysNeedARestart) {
  const std::vector<std::pair<std::string, std::string>> changes = {
      {"listen: {address: '127.0.0.1:1'}", "listen.address"},
      {"listen: {max_receive_message_bytes: 1MiB}", "listen.max_receive_message_bytes"},
      {"listen: {max_concurrent_calls: 3}", "listen.max_concurrent_calls"},
      {"device: {name: 'cuda:1'}", "device.name"},
      {"device: {bfloat16_arithmetic: native}", "device.bfloat16_arithmetic"},
      {"device: {threads: 3}", "device.threads"},
      {"device: {transfer_threads: 3}", "device.transfer_threads"},
      {"memory: {follow_pressure: false}", "memory.follow_pressure"},
      {"models: [{name: a, path: /b}]", "models"},
      {"requests: {max_active: 3}", "requests.max_active"},
      {"requests: {max_queue: 3}", "requests.max_queue"},
      {"requests: {max_side_pixels: 32}", "requests.max_side_pixels"},
      {"requests: {max_batch: 3}", "requests.max_batch"},
      {"requests: {drain_timeout_seconds: 3}", "requests.drain_timeout_seconds"},
      {"requests: {idle_release_seconds: 3}", "requests.idle_release_seconds"},
      {"admin: {address: none}", "admin.address"},
      {"access: {tokens: /t}", "access.tokens"},
      {"tls: {certificate: /c, private_key: /k}", "tls"},
      {"listen: {plaintext_from_other_machines: true}", "listen.plaintext_from_other_machines"},
      {"listen: {max_connections: 3}", "listen.max_connections"},
      {"listen: {message_memory: 3GiB}", "listen.message_memory"},
      {"listen: {health_address: '127.0.0.1:0'}", "listen.health_address"},
      {"metrics: {address: none}", "metrics.address"},
      {"log: {format: json}", "log.format"},
      {"default_profile: resident", "default_profile"},
      {"profiles: {disk: {computation_dtype: float32}}", "profiles"},
      {"profiles: {mine: {computation_dtype: float32}}", "profiles"},
  };
  const absl::StatusOr<ServerConfig> running = Parse("");
  ASSERT_THAT(running, IsOk());
  for (const auto& [yaml, key] : changes) {
    const absl::StatusOr<ServerConfig> wanted = Parse(yaml);
    ASSERT_THAT(wanted, IsOk()) << yaml;
    EXPECT_THAT(KeysThatNeedARestart(*running, *wanted), ::testing::ElementsAre(key));
  }
  for (const char* yaml : {"", "memory: {device_budget: 1GiB, host_budget: 1GiB}", "log: {level: debug}"}) {
    const absl::StatusOr<ServerConfig> wanted = Parse(yaml);
    ASSERT_THAT(wanted, IsOk()) << yaml;
    EXPECT_THAT(KeysThatNeedARestart(*running, *wanted), ::testing::IsEmpty()) << yaml;
  }
}

}  // namespace
}  // namespace ditserve
