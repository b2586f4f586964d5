#include "server/config/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/config/default_config.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

using ::testing::ElementsAre;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

absl::StatusOr<ServerConfig> Parse(const std::string& yaml) { return ParseConfig(yaml, "c.yaml"); }

void ExpectRefused(const std::string& yaml, const std::string& message) {
  EXPECT_THAT(Parse(yaml), StatusIs(kInvalid, message)) << yaml;
}

std::vector<std::string> ProfileNames(const ServerConfig& config) {
  std::vector<std::string> names;
  for (const ProfileSpec& spec : config.profiles) names.push_back(spec.name);
  return names;
}

TEST(ServerConfigTest, HasTheShippedFileBuiltIn) { EXPECT_EQ(ReadWholeFile(DITSERVE_CONFIG_FILE), kDefaultConfig); }

TEST(ServerConfigTest, HasDefaultsForEverythingButModels) {
  const absl::StatusOr<ServerConfig> config = Parse("");
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->listen_address, "127.0.0.1:50051");
  EXPECT_EQ(config->max_receive_message_bytes, 256 << 20);
  EXPECT_EQ(config->max_concurrent_calls, 256);
  EXPECT_EQ(config->max_connection_age, absl::Minutes(30));
  EXPECT_THAT(config->devices, ElementsAre("cpu"));
  EXPECT_EQ(config->bfloat16_arithmetic, CpuBFloat16::kAuto);
  EXPECT_EQ(config->threads, 0);
  EXPECT_EQ(config->transfer_threads, 4);
  EXPECT_TRUE(config->device_budget.automatic);
  EXPECT_EQ(ResolveBudget(config->device_budget, 1000), 600);
  EXPECT_EQ(ResolveBudget(config->host_budget, 1000), 250);
  EXPECT_FALSE(config->modulation_bytes.has_value()) << "auto";
  EXPECT_EQ(config->max_active, 16);
  EXPECT_EQ(config->max_queue, 64);
  EXPECT_EQ(config->max_side_pixels, 4096);
  EXPECT_EQ(config->max_batch, 16);
  EXPECT_EQ(config->drain_timeout, absl::Seconds(600));
  EXPECT_EQ(config->idle_release, absl::Seconds(60));
  EXPECT_EQ(config->metrics_address, "127.0.0.1:9464");
  EXPECT_EQ(config->admin_address, "127.0.0.1:50052");
  EXPECT_EQ(config->tokens_file, "");
  EXPECT_EQ(config->log_level, "info");
  EXPECT_EQ(config->default_profile, "disk");
  EXPECT_TRUE(config->models.empty());
}

TEST(ServerConfigTest, ChangesNothingWhenTheShippedFileIsGiven) {
  const absl::StatusOr<ServerConfig> shipped = Parse(ReadWholeFile(DITSERVE_CONFIG_FILE)), defaults = Parse("");
  ASSERT_THAT(shipped, IsOk());
  EXPECT_EQ(ProfileNames(*shipped), ProfileNames(*defaults));
  EXPECT_EQ(shipped->listen_address, defaults->listen_address);
  EXPECT_EQ(shipped->transfer_threads, defaults->transfer_threads);
  EXPECT_EQ(shipped->default_profile, defaults->default_profile);
}

TEST(ServerConfigTest, ReadsEveryKey) {
  const absl::StatusOr<ServerConfig> config = Parse(R"(
listen: {address: "unix:/run/ditserve.sock", max_receive_message_bytes: 1.5MiB, max_concurrent_calls: 7,
         plaintext_from_other_machines: true, max_connections: 9, max_connection_age_seconds: 10,
         message_memory: 3MiB, answer_memory: 4MiB, health_address: "0.0.0.0:1"}
tls: {certificate: /c.pem, private_key: /k.pem, client_ca: /ca.pem}
access: {tokens: /t.yaml}
device: {name: "cuda:1", bfloat16_arithmetic: native, threads: 3, transfer_threads: 5}
memory: {device_budget: 8 GiB, host_budget: 12.5%, modulation: 212MiB}
models:
  - {name: a, path: /models/a, type: QwenImageDiT, numerics: diffusers}
  - {name: b, path: /models/b}
requests:
  max_active: 2
  max_queue: 0
  max_side_pixels: 512
  max_batch: 1
  drain_timeout_seconds: 8
  idle_release_seconds: 9
log: {level: warn}
default_profile: disk
)");
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->listen_address, "unix:/run/ditserve.sock");
  EXPECT_EQ(config->max_receive_message_bytes, 3 << 19);
  EXPECT_EQ(config->max_concurrent_calls, 7);
  EXPECT_TRUE(config->plaintext_from_other_machines);
  EXPECT_EQ(config->max_connections, 9);
  EXPECT_EQ(config->max_connection_age, absl::Seconds(10));
  EXPECT_EQ(config->message_memory_bytes, 3 << 20);
  EXPECT_EQ(config->answer_memory_bytes, 4 << 20);
  EXPECT_EQ(config->health_address, "0.0.0.0:1");
  EXPECT_EQ(config->tls, (TlsFiles{"/c.pem", "/k.pem", "/ca.pem"}));
  EXPECT_EQ(config->tokens_file, "/t.yaml");
  EXPECT_THAT(config->devices, ElementsAre("cuda:1"));
  EXPECT_EQ(config->bfloat16_arithmetic, CpuBFloat16::kNative);
  EXPECT_EQ(config->threads, 3);
  EXPECT_EQ(config->transfer_threads, 5);
  EXPECT_EQ(config->device_budget.bytes, int64_t{8} << 30);
  EXPECT_EQ(ResolveBudget(config->host_budget, 1000), 125);
  EXPECT_EQ(config->modulation_bytes, 212 << 20);
  ASSERT_EQ(config->models.size(), 2u);
  EXPECT_EQ(config->models[0].name, "a");
  EXPECT_EQ(config->models[0].path, "/models/a");
  EXPECT_EQ(config->models[0].numerics, Numerics::kDiffusers);
  EXPECT_EQ(config->models[1].numerics, Numerics::kDiffSynth);
  EXPECT_EQ(config->max_active, 2);
  EXPECT_EQ(config->max_queue, 0);
  EXPECT_EQ(config->max_side_pixels, 512);
  EXPECT_EQ(config->max_batch, 1);
  EXPECT_EQ(config->drain_timeout, absl::Seconds(8));
  EXPECT_EQ(config->idle_release, absl::Seconds(9));
  EXPECT_EQ(config->log_level, "warn");
}

TEST(ServerConfigTest, ReplacesAShippedProfileAsAWhole) {
  const absl::StatusOr<ServerConfig> config = Parse("profiles: {disk: {computation_dtype: float16}}");
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->profiles.size(), 7u);
  EXPECT_EQ(config->profiles[4].name, "disk");
  EXPECT_EQ(config->profiles[4].vram_config.offload_dtype, std::nullopt);
  EXPECT_EQ(config->profiles[4].vram_limit_gib, std::nullopt);
}

TEST(ServerConfigTest, RefusesUnknownKeysSayingWhere) {
  ExpectRefused("log:\n  level: info\n  colour: red\n", "c.yaml:3:3: log.colour: unknown key; valid: level, format");
  ExpectRefused("\nlisten: {}\nport: 1\n",
                "c.yaml:3:1: port: unknown key; valid: listen, tls, access, admin, device, memory, models, requests, "
                "metrics, log, "
                "default_profile, "
                "profiles");
  ExpectRefused("profiles:\n  p:\n    vram_limit: 1\n", "c.yaml:3:5: profiles.p.vram_limit: unknown key; valid: ");
  for (const char* room : {"listen", "device", "memory", "requests"}) {
    ExpectRefused(absl::StrCat(room, ": {x: 1}"),
                  absl::StrCat("c.yaml:1:", strlen(room) + 4, ": ", room, ".x: unknown"));
  }
  ExpectRefused("models: [{name: a, path: b, x: 1}]", "models[0].x: unknown key; valid: name, path, type, numerics");
}

TEST(ServerConfigTest, RefusesKeysThatStandTwice) {
  ExpectRefused("log: {level: info}\nlog: {level: warn}\n", ": log: the key stands twice");
  ExpectRefused("log:\n  level: info\n  level: info\n", ": log.level: the key stands twice");
  ExpectRefused("profiles: {p: {}, p: {}}", "profiles.p: the key stands twice");
  ExpectRefused("profiles: {p: {module_map: {Linear: a, Linear: b}}}", "profiles.p.module_map.Linear: the key stands");
}

TEST(ServerConfigTest, RefusesWhatIsNoConfiguration) {
  ExpectRefused("a: [", "c.yaml:1:");
  ExpectRefused("- a", "c.yaml:1:1: expected keys and values");
  ExpectRefused("[a]: 1", "c.yaml:1:1: keys must be plain words");
  ExpectRefused("log: {level: info}\n---\nlog: {level: warn}\n", "c.yaml:3:1: expected one document, found another");
  ExpectRefused(std::string(100000, '['), "c.yaml:1:");
}

TEST(ServerConfigTest, RefusesWrongTypes) {
  ExpectRefused("listen: 1", "c.yaml:1:9: listen: expected keys and values");
  ExpectRefused("listen:", "listen: expected keys and values");
  ExpectRefused("log: {level: [info]}", "c.yaml:1:7: log.level: expected a single value");
  ExpectRefused("log: {level: null}", "log.level: expected a single value");
  ExpectRefused("memory: {host_budget: null}", "memory.host_budget: expected a single value");
  ExpectRefused("device: {threads: {}}", "device.threads: expected a single value");
  ExpectRefused("models: {}", "c.yaml:1:1: models: expected a list");
  ExpectRefused("models: [a]", "models[0]: expected keys and values");
  ExpectRefused("profiles: {p: {module_map: {Linear: [a]}}}", "profiles.p.module_map.Linear: expected a single value");
  ExpectRefused("profiles: {p: {offload_dtype: [a]}}", "profiles.p.offload_dtype: expected a single value");
  ExpectRefused("profiles: {p: {vram_limit_gib: {}}}", "profiles.p.vram_limit_gib: expected a single value");
}

TEST(ServerConfigTest, RefusesIntegersOutOfRange) {
  const std::vector<std::tuple<std::string, std::string, int64_t, int64_t>> ranges = {
      {"listen", "max_concurrent_calls", 1, 1 << 20},
      {"listen", "max_connections", 1, 1 << 20},
      {"listen", "max_connection_age_seconds", 0, 2592000},
      {"device", "threads", 0, 1024},
      {"device", "transfer_threads", 1, 64},
      {"requests", "max_active", 1, 4096},
      {"requests", "max_queue", 0, 1 << 20},
      {"requests", "max_side_pixels", 16, 1 << 16},
      {"requests", "max_batch", 1, 1024},
      {"requests", "drain_timeout_seconds", 0, 2592000},
      {"requests", "idle_release_seconds", 0, 2592000}};
  for (const auto& [room, key, min, max] : ranges) {
    const auto yaml = [&, room = room, key = key](const std::string& value) {
      return absl::StrCat(room, ": {", key, ": ", value, "}");
    };
    EXPECT_THAT(Parse(yaml(absl::StrCat(min))), IsOk());
    EXPECT_THAT(Parse(yaml(absl::StrCat(max))), IsOk());
    for (const std::string& value : {absl::StrCat(min - 1), absl::StrCat(max + 1), std::string("1.5"),
                                     std::string("many"), std::string("99999999999999999999")}) {
      ExpectRefused(yaml(value), absl::StrCat(room, ".", key, ": expected an integer from ", min, " to ", max,
                                              ", found '", value, "'"));
    }
  }
}

TEST(ServerConfigTest, ShowsWrongValuesShortAndPrintable) {
  const absl::Status status = Parse("device: {threads: \"\\e" + std::string(1000, 'x') + "\"}").status();
  EXPECT_THAT(status, StatusIs(kInvalid, "found '\\x1b" + std::string(63, 'x') + "'"));
}

TEST(ServerConfigTest, RefusesALimitOutOfRange) {
  for (const char* limit : {"-1", "1048577", ".nan", "nan", "inf", "all"}) {
    ExpectRefused(absl::StrCat("profiles: {p: {vram_limit_gib: ", limit, "}}"),
                  absl::StrCat("profiles.p.vram_limit_gib: expected a number from 0 to 1048576, found '", limit, "'"));
  }
}

TEST(ServerConfigTest, ComputesOnOneDeviceOrSeveral) {
  EXPECT_THAT(Parse("device: {name: 'cuda:3'}")->devices, ElementsAre("cuda:3"));
  EXPECT_THAT(Parse("device: {name: [cpu]}")->devices, ElementsAre("cpu"));
  EXPECT_THAT(Parse("device: {name: ['cuda:1', 'cuda:0']}")->devices, ElementsAre("cuda:1", "cuda:0"));
}

TEST(ServerConfigTest, RefusesDevicesThatCannotComputeTogether) {
  ExpectRefused("device: {name: []}", "c.yaml:1:10: device.name: expected at least one device, cpu or cuda:N");
  ExpectRefused("device: {name: ['cuda:0', gpu]}", "device.name: expected cpu or cuda:N");
  ExpectRefused("device: {name: ['cuda:0', ['cuda:1']]}", "device.name: expected a single value");
  ExpectRefused("device: {name: {}}", "device.name: expected a single value");
  ExpectRefused("device: {name: [cpu, 'cuda:0']}", "device.name: cpu computes alone, found it beside others");
  ExpectRefused("device: {name: ['cuda:0', 'cuda:1', 'cuda:0']}", "device.name: cuda:0 stands twice");
  std::vector<std::string> many;
  for (int i = 0; i < 16; ++i) many.push_back(absl::StrCat("'cuda:", i, "'"));
  EXPECT_THAT(Parse(absl::StrCat("device: {name: [", absl::StrJoin(many, ", "), "]}")), IsOk());
  many.push_back("'cuda:16'");
  ExpectRefused(absl::StrCat("device: {name: [", absl::StrJoin(many, ", "), "]}"),
                "device.name: expected at most 16 devices, found 17");
}

TEST(ServerConfigTest, RefusesWrongWords) {
  ExpectRefused("device: {name: gpu}", "c.yaml:1:10: device.name: expected cpu or cuda:N");
  for (const char* device : {"cuda", "'cuda:'", "'cuda:01'", "'cuda: 1'", "'cuda:-1'", "CPU"}) {
    ExpectRefused(absl::StrCat("device: {name: ", device, "}"), "device.name: expected cpu or cuda:N");
  }
  ExpectRefused("device: {bfloat16_arithmetic: fast}", "device.bfloat16_arithmetic: expected auto, native or float32");
  ExpectRefused("metrics: {address: unix:/tmp/m}",
                "metrics.address: expected host:port with a port from 0 to 65535, or none");
  ExpectRefused("metrics: {address: '9464'}", "metrics.address: expected host:port");
  ExpectRefused(
      "admin: {address: '50052'}",
      "admin.address: expected host:port with a port from 0 to 65535, unix:/path of at most 107 bytes, or none");
  ExpectRefused("log: {level: trace}", "log.level: expected debug, info, warn or error");
}

TEST(ServerConfigTest, TakesAddresses) {
  for (const char* address : {"0.0.0.0:0", "[::]:50051", "host.example:65535", "unix:/run/s", "unix:///run/s"}) {
    const absl::StatusOr<ServerConfig> config = Parse(absl::StrCat("listen: {address: '", address, "'}"));
    ASSERT_THAT(config, IsOk());
    EXPECT_EQ(config->listen_address, address);
  }
}

TEST(ServerConfigTest, RefusesWhatIsNoAddress) {
  for (const std::string& address : {std::string("host"), std::string(":1"), std::string("h:"), std::string("h:x"),
                                     std::string("h:65536"), std::string("h:-1"), std::string("h:000001"),
                                     std::string("unix:"), std::string("unix:rel"), "unix:/" + std::string(107, 'x')}) {
    ExpectRefused("listen: {address: '" + address + "'}",
                  "listen.address: expected host:port with a port from 0 to 65535, or unix:/path of at most 107 bytes");
  }
}

TEST(ServerConfigTest, ReadsBytesWithUnits) {
  for (const auto& [text, bytes] : std::vector<std::pair<std::string, int64_t>>{{"1", 1},
                                                                                {"2KiB", 2048},
                                                                                {"1.5 MiB", 3 << 19},
                                                                                {"3GiB", int64_t{3} << 30},
                                                                                {"1048576GiB", int64_t{1} << 50}}) {
    const absl::StatusOr<ServerConfig> config = Parse("memory: {device_budget: " + text + "}");
    ASSERT_THAT(config, IsOk()) << text;
    EXPECT_EQ(config->device_budget.bytes, bytes) << text;
  }
}

TEST(ServerConfigTest, RefusesWrongBudgets) {
  for (const char* key : {"device_budget", "host_budget"}) {
    for (const char* budget : {"0", "0GiB", "-1", "1048577GiB", "1GB", "1TiB", "GiB", "nan", "inf", "0%", "101%", "-5%",
                               "nan%", "%", "''", "half", "5GiBMiBKiB", "5KiBKiB", "Auto"}) {
      ExpectRefused(absl::StrCat("memory: {", key, ": ", absl::StartsWith(budget, "%") ? "'%'" : budget, "}"),
                    absl::StrCat("memory.", key, ": expected ", key[0] == 'd' ? "auto, " : "",
                                 "1 to 2^50 bytes, with KiB, MiB or GiB, or a share"));
    }
  }
}

TEST(ServerConfigTest, ModulationIsBytesOrAuto) {
  const absl::StatusOr<ServerConfig> none = Parse("memory: {modulation: 0}");
  const absl::StatusOr<ServerConfig> automatic = Parse("memory: {modulation: auto}");
  ASSERT_THAT(none, IsOk());
  ASSERT_THAT(automatic, IsOk());
  EXPECT_EQ(none->modulation_bytes, int64_t{0});
  EXPECT_FALSE(automatic->modulation_bytes.has_value());
  for (const char* bytes : {"-1", "5%", "Auto", "1048577GiB", "''"}) {
    ExpectRefused(absl::StrCat("memory: {modulation: ", bytes, "}"),
                  "memory.modulation: expected auto, or 0 to 2^50 bytes, with KiB, MiB or GiB");
  }
}

TEST(ServerConfigTest, RefusesAMessageSizeThatGrpcCantHave) {
  for (const char* size : {"0", "2GiB", "-1", "all"}) {
    ExpectRefused(absl::StrCat("listen: {max_receive_message_bytes: ", size, "}"),
                  "listen.max_receive_message_bytes: expected 1 to 2147483647 bytes, with KiB, MiB or GiB");
  }
}

TEST(ServerConfigTest, RefusesWrongModels) {
  ExpectRefused("models: [{path: p}]", "c.yaml:1:10: models[0].name: a name has 1 to 64");
  ExpectRefused("models: [{name: a/b, path: p}]",
                "models[0].name: a name has 1 to 64 letters, digits, '.', '_' or '-'");
  ExpectRefused("models: [{name: " + std::string(65, 'a') + ", path: p}]", "models[0].name: a name has 1 to 64");
  ExpectRefused("models: [{name: a}]", "models[0].path: expected a folder, a .safetensors file or a pattern of shards");
  ExpectRefused("models: [{name: a, path: p, type: Flux}]", "models[0].type: expected QwenImageDiT");
  ExpectRefused("models: [{name: a, path: p, numerics: exact}]", "models[0].numerics: expected diffsynth or diffusers");
  ExpectRefused("models: [{name: a, path: p}, {name: a, path: q}]", "models[1].name: another model has this name");
}

TEST(ServerConfigTest, RefusesHalfOfWhatTlsNeeds) {
  ExpectRefused("tls: {certificate: /c}", "tls.private_key: the other of the two is given");
  ExpectRefused("tls: {private_key: /k}", "tls.certificate: the other of the two is given");
  ExpectRefused("tls: {client_ca: /a}", "tls.certificate: client_ca is given");
  ExpectRefused("listen: {health_address: 'unix:/s'}", "listen.health_address: expected host:port");
  ExpectRefused("listen: {message_memory: 0}", "listen.message_memory: expected 1 to 2^50 bytes");
  ExpectRefused("listen: {answer_memory: 0}", "listen.answer_memory: expected 1 to 2^50 bytes");
  ExpectRefused("listen: {plaintext_from_other_machines: perhaps}", "expected true or false");
}

TEST(ServerConfigTest, RefusesWrongProfileNames) {
  ExpectRefused("profiles: {a b: {}}", "profiles.a b: a name has 1 to 64");
  ExpectRefused("profiles: {'': {}}", "a name has 1 to 64");
}

}  // namespace
}  // namespace ditserve
