// What a running server takes over of a changed configuration, and what it says needs a restart.
#include "server/config/restart_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <yaml-cpp/yaml.h>

#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/config/config.h"
#include "server/config/default_config.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

absl::StatusOr<ServerConfig> Parsed(const std::string& yaml) { return ParseConfig(yaml, "c.yaml"); }

// A key with a value that is not the one of `running`, and what is told of it.
struct Change {
  std::string yaml, told;
  std::string running = {};
};

const std::vector<Change>& ChangesThatNeedARestart() {
  static const std::vector<Change> changes = {
      {"listen: {address: '127.0.0.1:1'}", "listen.address"},
      {"listen: {max_receive_message_bytes: 1MiB}", "listen.max_receive_message_bytes"},
      {"listen: {max_concurrent_calls: 3}", "listen.max_concurrent_calls"},
      {"device: {name: 'cuda:1'}", "device.name"},
      {"device: {bfloat16_arithmetic: native}", "device.bfloat16_arithmetic"},
      {"device: {threads: 3}", "device.threads"},
      {"device: {transfer_threads: 3}", "device.transfer_threads"},
      {"memory: {modulation: 1MiB}", "memory.modulation"},
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
      {"tls: {certificate: /c, private_key: /other}", "tls", "tls: {certificate: /c, private_key: /k}"},
      {"tls: {certificate: /c, private_key: /k, client_ca: /a}", "tls", "tls: {certificate: /c, private_key: /k}"},
      {"listen: {plaintext_from_other_machines: true}", "listen.plaintext_from_other_machines"},
      {"listen: {max_connections: 3}", "listen.max_connections"},
      {"listen: {max_connection_age_seconds: 3}", "listen.max_connection_age_seconds"},
      {"listen: {message_memory: 3GiB}", "listen.message_memory"},
      {"listen: {answer_memory: 3GiB}", "listen.answer_memory"},
      {"listen: {health_address: '127.0.0.1:0'}", "listen.health_address"},
      {"metrics: {address: none}", "metrics.address"},
      {"log: {format: json}", "log.format"},
      {"default_profile: resident", "default_profile"},
      {"profiles: {disk: {computation_dtype: float32}}", "profiles"},
      {"profiles: {mine: {computation_dtype: float32}}", "profiles"},
  };
  return changes;
}

// What a running server takes over.
constexpr const char* kFollowed[] = {"memory: {device_budget: 1GiB, host_budget: 1GiB}", "log: {level: debug}"};

// "section.key" of every key; of profiles only that there are some.
std::set<std::string> KeysOf(const std::string& yaml) {
  std::set<std::string> keys;
  for (const auto& section : YAML::Load(yaml)) {
    const auto name = section.first.as<std::string>();
    if (!section.second.IsMap() || name == "profiles") {
      keys.insert(name);
      continue;
    }
    for (const auto& value : section.second) keys.insert(absl::StrCat(name, ".", value.first.as<std::string>()));
  }
  return keys;
}

TEST(RestartKeysTest, EachKeyThatNeedsOneIsTold) {
  for (const Change& change : ChangesThatNeedARestart()) {
    const absl::StatusOr<ServerConfig> running = Parsed(change.running), wanted = Parsed(change.yaml);
    ASSERT_THAT(running, IsOk()) << change.running;
    ASSERT_THAT(wanted, IsOk()) << change.yaml;
    EXPECT_THAT(KeysThatNeedARestart(*running, *wanted), ::testing::ElementsAre(change.told)) << change.yaml;
  }
  const absl::StatusOr<ServerConfig> running = Parsed("");
  ASSERT_THAT(running, IsOk());
  EXPECT_THAT(KeysThatNeedARestart(*running, *running), ::testing::IsEmpty());
  for (const char* yaml : kFollowed) {
    const absl::StatusOr<ServerConfig> wanted = Parsed(yaml);
    ASSERT_THAT(wanted, IsOk()) << yaml;
    EXPECT_THAT(KeysThatNeedARestart(*running, *wanted), ::testing::IsEmpty()) << yaml;
  }
}

TEST(RestartKeysTest, EveryKeyIsFollowedOrNeedsARestart) {
  std::set<std::string> tried;
  for (const Change& change : ChangesThatNeedARestart()) tried.merge(KeysOf(change.yaml));
  for (const char* yaml : kFollowed) tried.merge(KeysOf(yaml));
  EXPECT_EQ(tried, KeysOf(kDefaultConfig)) << "a key that is new, or gone, is to be told to the tests above";
}

}  // namespace
}  // namespace ditserve
