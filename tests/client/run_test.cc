// What holds for every command, and make-checkpoint, which needs no server.
#include <filesystem>
#include <string>

#include "tests/client/fake_server.h"

namespace ditserve::ditctl {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST_F(DitctlTest, RefusesAnUnknownCommandByNameWithTheValidOnes) {
  EXPECT_EQ(Call({"fly"}), kUsage);
  EXPECT_EQ(
      err.str(),
      "ditctl: unknown command 'fly'; valid: forward, denoise, plan, model, models, profiles, residency, top, budget, "
      "health, make-checkpoint\n");
}

TEST_F(DitctlTest, RefusesAnUnknownFlagByNameWithTheValidOnes) {
  EXPECT_EQ(Call({"models", "--jsn"}), kUsage);
  EXPECT_EQ(err.str(),
            "ditctl: unknown flag --jsn; valid: --help, --address, --tls, --ca, --certificate, --private-key, "
            "--token-file, --json\n");
}

TEST_F(DitctlTest, WithoutACommandItExplainsItself) {
  EXPECT_EQ(Call({}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("Usage: ditctl COMMAND"));
  EXPECT_EQ(Call({"--help"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("Usage: ditctl COMMAND"));
}

TEST_F(DitctlTest, EveryCommandExplainsItself) {
  for (const char* command : {"forward", "model", "models", "profiles", "residency", "health", "make-checkpoint"}) {
    EXPECT_EQ(Call({command, "--help"}), kOk) << command;
    EXPECT_THAT(out.str(), HasSubstr(std::string("Usage: ditctl ") + command));
  }
}

TEST_F(DitctlTest, TellsItsVersion) {
  EXPECT_EQ(Call({"--version"}), kOk);
  EXPECT_THAT(out.str(), StartsWith("ditctl "));
}

TEST_F(DitctlTest, MakeCheckpointRefusesWhatItCannotMake) {
  EXPECT_EQ(Call({"make-checkpoint", "--blocks", "0", "--out", folder / "x"}), kUsage);
  EXPECT_EQ(err.str(), "ditctl: --blocks: expected 1 to 1000, found 0\n");
  EXPECT_EQ(Call({"make-checkpoint"}), kUsage);
  EXPECT_EQ(err.str(), "ditctl: --out DIR is needed\n");
  EXPECT_EQ(Call({"make-checkpoint", "--dtype", "int8", "--out", folder / "x"}), kUsage);
  EXPECT_EQ(err.str(), "ditctl: --dtype: expected bfloat16, float16, float32 or float8_e4m3fn, found 'int8'\n");
  EXPECT_EQ(Call({"make-checkpoint", "--out", folder.path() + "/.."}), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("not an empty folder"));
}

TEST_F(DitctlTest, AnInterruptedMakeCheckpointLeavesNothing) {
  interrupted = true;
  EXPECT_EQ(Call({"make-checkpoint", "--blocks", "1", "--out", folder / "x"}), kInterrupted);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace ditserve::ditctl
