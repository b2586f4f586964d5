#include "server/config/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/config/catalogue.h"
#include "server/config/config.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotFound = absl::StatusCode::kNotFound;

absl::StatusOr<CommandLine> Flags(const std::vector<const char*>& arguments) { return ParseCommandLine(arguments); }

// The configuration of a server started with these flags.
absl::StatusOr<ServerConfig> Load(const std::vector<const char*>& arguments) {
  const absl::StatusOr<CommandLine> line = Flags(arguments);
  if (!line.ok()) return line.status();
  return LoadConfig(*line);
}

TEST(CommandLineTest, ReadsEveryFlag) {
  const absl::StatusOr<CommandLine> line =
      Flags({"--config", "f.yaml", "--listen=[::]:1", "--device", "cuda:0", "--model", "a=/x", "--model=b=/y=z",
             "--default-profile", "disk", "--device-budget=60%", "--host-budget", "1GiB", "--log-level", "debug",
             "--check", "--version", "--help"});
  ASSERT_THAT(line, IsOk());
  EXPECT_EQ(line->config_file, "f.yaml");
  EXPECT_EQ(line->listen, "[::]:1");
  EXPECT_THAT(line->devices, ::testing::ElementsAre("cuda:0"));
  ASSERT_EQ(line->models.size(), 2u);
  EXPECT_EQ(line->models[0].name, "a");
  EXPECT_EQ(line->models[0].path, "/x");
  EXPECT_EQ(line->models[1].path, "/y=z");
  EXPECT_EQ(line->default_profile, "disk");
  EXPECT_EQ(line->device_budget, "60%");
  EXPECT_EQ(line->host_budget, "1GiB");
  EXPECT_EQ(line->log_level, "debug");
  EXPECT_TRUE(line->check && line->version && !line->help.empty());
}

TEST(CommandLineTest, TakesTheNumericsOfAModel) {
  const absl::StatusOr<CommandLine> line = Flags({"--model", "a=/x,numerics=diffusers"});
  ASSERT_THAT(line, IsOk());
  EXPECT_EQ(line->models[0].path, "/x");
  EXPECT_EQ(line->models[0].numerics, Numerics::kDiffusers);
}

TEST(CommandLineTest, IsNothingWithoutFlags) {
  const absl::StatusOr<CommandLine> line = Flags({});
  ASSERT_THAT(line, IsOk());
  EXPECT_TRUE(line->config_file.empty() && line->models.empty());
  EXPECT_FALSE(line->check || line->version || !line->help.empty());
}

TEST(CommandLineTest, RefusesWrongFlagsByName) {
  EXPECT_THAT(Flags({"--prot", "1"}), StatusIs(kInvalid, "unknown flag --prot; valid: --help, --config, --model"));
  EXPECT_THAT(Flags({"--prot=1"}), StatusIs(kInvalid, "unknown flag --prot; valid: --help, --config, --model"));
  EXPECT_THAT(Flags({"file.yaml"}), StatusIs(kInvalid, "unexpected argument 'file.yaml'"));
  EXPECT_THAT(Flags({"--listen"}), StatusIs(kInvalid, "--listen: 1 required ADDRESS missing"));
  EXPECT_THAT(Flags({"--check=yes"}), StatusIs(kInvalid, "--check: takes no value"));
  EXPECT_THAT(Flags({"--model", "/x"}), StatusIs(kInvalid, "--model: a name has 1 to 64"));
  EXPECT_THAT(Flags({"--model", "a="}), StatusIs(kInvalid, "--model: expected NAME=PATH"));
  EXPECT_THAT(Flags({"--model", "a=/x", "--model", "a=/y"}), StatusIs(kInvalid, "--model: two models are named a"));
}

TEST(CommandLineTest, TellsOfEveryFlagInTheHelp) {
  const absl::StatusOr<CommandLine> line = Flags({"--help"});
  ASSERT_THAT(line, IsOk());
  for (const char* flag : {"--config", "--listen", "--device ", "--model", "--default-profile", "--device-budget",
                           "--host-budget", "--log-level", "--check", "--version", "--help"}) {
    EXPECT_THAT(line->help, HasSubstr(flag));
  }
}

TEST(LoadConfigTest, LetsFlagsOverrideTheFile) {
  const TempFolder folder;
  const std::string file = folder / "c.yaml";
  WriteFile(file,
            "listen: {address: '127.0.0.1:1'}\nmodels: [{name: a, path: /x}]\nlog: {level: warn}\nmemory: "
            "{host_budget: 1MiB}\n");
  const absl::StatusOr<ServerConfig> config = Load(
      {"--config", file.c_str(), "--listen", "127.0.0.1:2", "--device", "cuda:1", "--model", "b=/y",
       "--default-profile", "resident", "--device-budget", "50%", "--host-budget", "2MiB", "--log-level", "error"});
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->listen_address, "127.0.0.1:2");
  EXPECT_THAT(config->devices, ::testing::ElementsAre("cuda:1"));
  ASSERT_EQ(config->models.size(), 1u);
  EXPECT_EQ(config->models[0].name, "b");
  EXPECT_EQ(config->default_profile, "resident");
  EXPECT_EQ(ResolveBudget(config->device_budget, 100), 50);
  EXPECT_EQ(config->host_budget.bytes, 2 << 20);
  EXPECT_EQ(config->log_level, "error");
}

TEST(LoadConfigTest, KeepsTheFileWhereNoFlagSaysOtherwise) {
  const TempFolder folder;
  const std::string file = folder / "c.yaml";
  WriteFile(file, "listen: {address: '127.0.0.1:1'}\nmodels: [{name: a, path: /x}]\n");
  const absl::StatusOr<ServerConfig> config = Load({"--config", file.c_str()});
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->listen_address, "127.0.0.1:1");
  EXPECT_EQ(config->models[0].path, "/x");
}

TEST(LoadConfigTest, DevicesAreRepeatedAndReplaceThoseOfTheFile) {
  const TempFolder folder;
  const std::string file = folder / "c.yaml";
  WriteFile(file, "device: {name: ['cuda:0', 'cuda:1']}\nmodels: [{name: a, path: /x}]\n");
  const std::vector<const char*> flags = {"--config", file.c_str(), "--device", "cuda:2", "--device=cuda:1"};
  const absl::StatusOr<ServerConfig> config = LoadConfig(*ParseCommandLine(flags));
  ASSERT_THAT(config, IsOk());
  EXPECT_THAT(config->devices, ::testing::ElementsAre("cuda:2", "cuda:1"));
  EXPECT_THAT(Load({"--model", "a=/x", "--device", "cuda:1", "--device", "cuda:1"}),
              StatusIs(kInvalid, "--device: cuda:1 stands twice"));
}

TEST(LoadConfigTest, NeedsAModel) {
  EXPECT_THAT(Load({}), StatusIs(kInvalid, "no model is configured: give --model NAME=PATH, or 'models' in the file"));
}

TEST(LoadConfigTest, RefusesWrongValuesByFlag) {
  for (const auto& [flag, value] : std::vector<std::pair<const char*, const char*>>{{"--listen", "h"},
                                                                                    {"--device", "gpu"},
                                                                                    {"--log-level", "loud"},
                                                                                    {"--device-budget", "0"},
                                                                                    {"--host-budget", "1GB"}}) {
    EXPECT_THAT(Load({"--model", "a=/x", flag, value}), StatusIs(kInvalid, absl::StrCat(flag, ": expected ")));
  }
}

TEST(LoadConfigTest, ServesAdministratorsFromAfarOnlyWithTokens) {
  for (const char* address : {"127.0.0.1:0", "127.8.9.1:1", "localhost:1", "[::1]:1", "unix:/tmp/admin", "none"}) {
    EXPECT_THAT(Load({"--model", "a=/x", "--admin-listen", address}), IsOk()) << address;
  }
  for (const char* address : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "128.0.0.1:1", "gpu1.example.com:1"}) {
    EXPECT_THAT(Load({"--model", "a=/x", "--admin-listen", address}),
                StatusIs(kInvalid, absl::StrCat("admin.address: ", address, " can be reached from other machines")));
  }
  const TempFolder folder;
  const auto load = [&](const char* yaml) {
    WriteFile(folder / "c.yaml", yaml);
    return Load({"--model", "a=/x", "--config", (folder / "c.yaml").c_str()});
  };
  EXPECT_THAT(load("{admin: {address: '0.0.0.0:1'}, access: {tokens: /etc/tokens.yaml}}"),
              StatusIs(kInvalid, "admin.address: 0.0.0.0:1 can be reached from other machines: configure tls"));
  const absl::StatusOr<ServerConfig> config = load(
      "{admin: {address: '0.0.0.0:1'}, access: {tokens: /t.yaml}, tls: {certificate: /c.pem, private_key: /k.pem}}");
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->admin_address, "0.0.0.0:1");
  EXPECT_EQ(config->tokens_file, "/t.yaml");
  EXPECT_EQ(config->tls.certificate, "/c.pem");
}

TEST(LoadConfigTest, ListensElsewhereOnlyUnderTlsOrWhenToldInPlainWords) {
  for (const char* address : {"127.8.9.1:1", "localhost:1", "[::1]:1", "unix:/tmp/s"}) {
    EXPECT_THAT(Load({"--model", "a=/x", "--listen", address}), IsOk()) << address;
  }
  for (const char* address : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "gpu1.example.com:1"}) {
    EXPECT_THAT(Load({"--model", "a=/x", "--listen", address}),
                StatusIs(kInvalid, absl::StrCat("listen.address: ", address, " can be reached from other machines")));
  }
  const TempFolder folder;
  for (const char* yaml :
       {"listen: {plaintext_from_other_machines: true}", "tls: {certificate: /c, private_key: /k}"}) {
    WriteFile(folder / "c.yaml", yaml);
    EXPECT_THAT(Load({"--model", "a=/x", "--config", (folder / "c.yaml").c_str(), "--listen", "0.0.0.0:1"}), IsOk());
  }
}

TEST(LoadConfigTest, HasRoomForTheLargestMessage) {
  const TempFolder folder;
  WriteFile(folder / "c.yaml", "listen: {max_receive_message_bytes: 2MiB, message_memory: 1MiB}");
  EXPECT_THAT(
      Load({"--model", "a=/x", "--config", (folder / "c.yaml").c_str()}),
      StatusIs(kInvalid, "listen.message_memory: 1048576 bytes, less than listen.max_receive_message_bytes, 2097152"));
}

TEST(LoadConfigTest, NamesTheFlagOfADefaultProfileThatIsNotThere) {
  const absl::StatusOr<ServerConfig> config = Load({"--model", "a=/x", "--default-profile", "fast"});
  ASSERT_THAT(config, IsOk());
  EXPECT_THAT(MakeCatalogue(*config), StatusIs(kNotFound, "--default-profile: no profile is named 'fast'"));
}

TEST(LoadConfigTest, RefusesAFileThatCantBeRead) {
  const TempFolder folder;
  EXPECT_THAT(Load({"--config", (folder / "none.yaml").c_str()}),
              StatusIs(kNotFound, absl::StrCat("--config: ", folder / "none.yaml", ": ")));
  EXPECT_THAT(Load({"--config", ""}), StatusIs(kInvalid, "--config: expected a file"));
  EXPECT_THAT(Load({"--config="}), StatusIs(kInvalid, "--config: expected a file"));
  EXPECT_THAT(Load({"--config=", "--check"}), StatusIs(kInvalid, "--config: expected a file"));
  EXPECT_THAT(Load({"--config", folder.path().c_str()}), StatusIs(kInvalid, "--config: "));
}

TEST(LoadConfigTest, RefusesAFileThatIsTooLarge) {
  const TempFolder folder;
  const std::string file = folder / "large.yaml";
  WriteFile(file, std::string((1 << 20) + 1, '#'));
  EXPECT_THAT(Load({"--config", file.c_str()}),
              StatusIs(kInvalid, absl::StrCat("--config: ", file, ": 1048577 bytes; expected at most 1048576")));
}

TEST(LoadConfigTest, SaysWhereInTheFile) {
  const TempFolder folder;
  const std::string file = folder / "c.yaml";
  WriteFile(file, "log:\n  level: loud\n");
  EXPECT_THAT(Load({"--config", file.c_str()}), StatusIs(kInvalid, file + ":2:3: log.level: expected debug"));
}

}  // namespace
}  // namespace ditserve
