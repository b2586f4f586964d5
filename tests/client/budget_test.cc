#include "absl/strings/str_cat.h"
#include "tests/client/fake_server.h"

namespace ditserve::ditctl {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

TEST_F(DitctlTest, BudgetAsksForBytesOfAMemory) {
  EXPECT_EQ(Call({"budget", "device", "--bytes", "1.5GiB"}), kOk);
  EXPECT_EQ(server.set_budget.tier(), v1::TIER_DEVICE);
  EXPECT_EQ(server.set_budget.device(), "");
  EXPECT_EQ(server.set_budget.bytes(), 3 << 29);
  EXPECT_EQ(server.authorization, "");
  EXPECT_THAT(out.str(), HasSubstr("a budget of 1.5 GiB"));
}

TEST_F(DitctlTest, BudgetAsksForAShareOfAMemory) {
  EXPECT_EQ(Call({"budget", "host", "--bytes", "12.5%"}), kOk);
  EXPECT_EQ(server.set_budget.tier(), v1::TIER_HOST);
  EXPECT_EQ(server.set_budget.share(), 0.125);
  EXPECT_FALSE(server.set_budget.has_bytes());
}

TEST_F(DitctlTest, BudgetsHelpNamesTheMemoriesThatServersTake) {
  EXPECT_EQ(Call({"budget", "--help"}), kOk);
  EXPECT_THAT(out.str(), ContainsRegex("MEMORY +host, device, or a device's name: cuda:1\n"));
}

TEST_F(DitctlTest, BudgetRefusesWhatIsNoBudget) {
  for (const char* bytes : {"lots", "5GiBMiBKiB", "-1", "nan", "0%", "101%", "%"}) {
    EXPECT_EQ(Call({"budget", "device", "--bytes", bytes}), kUsage) << bytes;
    EXPECT_EQ(err.str(), absl::StrCat("ditctl: --bytes: expected 1 to 2^50 bytes, with KiB, MiB or GiB, or a share "
                                      "above 0% and up to 100%, found '",
                                      bytes, "'\n"));
  }
}

TEST_F(DitctlTest, BudgetNamesADeviceWhereOneIsNamed) {
  EXPECT_EQ(Call({"budget", "cuda:1", "--bytes", "1GiB"}), kOk);
  EXPECT_EQ(server.set_budget.tier(), v1::TIER_DEVICE);
  EXPECT_EQ(server.set_budget.device(), "cuda:1");
  EXPECT_EQ(Call({"budget", "attic", "--bytes", "1GiB"}), kUsage);
  EXPECT_EQ(err.str(), "ditctl: MEMORY: expected host, device, or a device's name, found 'attic'\n");
}

TEST_F(DitctlTest, BudgetSendsTheTokenOfAFile) {
  WriteFile(folder / "token", "0123456789abcdef\n");
  EXPECT_EQ(Call({"budget", "host", "--bytes", "1GiB", "--token-file", folder / "token"}), kOk);
  EXPECT_EQ(server.authorization, "Bearer 0123456789abcdef");
}

TEST_F(DitctlTest, BudgetRefusesATokenFileWithoutAToken) {
  EXPECT_EQ(Call({"budget", "host", "--bytes", "1GiB", "--token-file", folder / "none"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("none can't be read, or is empty"));
  for (const char* text : {"\n", "two words\n", "\x01\n"}) {
    WriteFile(folder / "token", text);
    EXPECT_EQ(Call({"budget", "host", "--bytes", "1GiB", "--token-file", folder / "token"}), kUsage) << text;
    EXPECT_THAT(err.str(), HasSubstr("begins with no token"));
  }
}

TEST_F(DitctlTest, BudgetIsNotToldWhatHelpsARequest) {
  server.status = grpc::Status(grpc::FAILED_PRECONDITION, "smaller than the transfer slots");
  EXPECT_EQ(Call({"budget", "host", "--bytes", "1KiB"}), kFailed);
  EXPECT_EQ(err.str(), "ditctl: FAILED_PRECONDITION: smaller than the transfer slots\n");
}

TEST_F(DitctlTest, BudgetPrintsJsonWhereAsked) {
  EXPECT_EQ(Call({"budget", "device", "--bytes", "1MiB", "--json"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("\"wanted_budget_bytes\": \"1048576\""));
}

}  // namespace
}  // namespace ditserve::ditctl
