#include "server/config/token_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "tests/testing/fake_clock.h"
#include "tests/testing/no_descriptors.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kYaml[] =
    "tokens:\n"
    "  - name: grafana\n"
    "    token: of-who-only-reads\n"
    "    scopes: [read]\n"
    "  - {name: operator, token: of-who-does-all-of-it, scopes: [infer, read, admin]}\n";

TEST(ParseTokensTest, ReadsNamesTokensAndScopes) {
  const absl::StatusOr<std::vector<AccessToken>> tokens = ParseTokens(kYaml, "tokens.yaml");
  ASSERT_THAT(tokens, IsOk());
  ASSERT_EQ(tokens->size(), 2u);
  EXPECT_EQ(tokens->at(0).caller.name, "grafana");
  EXPECT_EQ(tokens->at(0).token, "of-who-only-reads");
  EXPECT_THAT(tokens->at(0).scopes, ElementsAre(Scope::kRead));
  EXPECT_THAT(tokens->at(1).scopes, ElementsAre(Scope::kInfer, Scope::kRead, Scope::kAdmin));
}

TEST(ParseTokensTest, ReadsHowMuchATokenMayTake) {
  const absl::StatusOr<std::vector<AccessToken>> tokens = ParseTokens(
      "tokens:\n"
      "  - {name: a, token: 0123456789abcdef, scopes: [infer], max_calls: 3, max_message_bytes: 1.5MiB}\n"
      "  - {name: b, token: 0123456789abcdeg, scopes: [infer]}\n",
      "tokens.yaml");
  ASSERT_THAT(tokens, IsOk());
  EXPECT_EQ(tokens->at(0).caller.max_calls, 3);
  EXPECT_EQ(tokens->at(0).caller.max_message_bytes, 3 << 19);
  EXPECT_GE(tokens->at(1).caller.max_calls, 1 << 20);
  EXPECT_GE(tokens->at(1).caller.max_message_bytes, int64_t{1} << 50);
}

TEST(ParseTokensTest, RefusesWhatIsWrongAndNeverRepeatsAToken) {
  const auto error = [](const std::string& yaml) {
    return std::string(ParseTokens(yaml, "tokens.yaml").status().message());
  };
  EXPECT_THAT(error("tokens: []\n"), HasSubstr("expected at least one token"));
  EXPECT_THAT(error("{}\n"), HasSubstr("expected at least one token"));
  EXPECT_THAT(error("tokens:\n  - {name: a, token: short}\n"),
              HasSubstr("tokens.yaml:2:15: tokens[0].token: expected 16 to 4096 printable characters"));
  EXPECT_THAT(error("tokens:\n  - {name: a, token: with a blank in its midst}\n"), Not(HasSubstr("blank")));
  EXPECT_THAT(error("tokens:\n  - {name: a b, token: 0123456789abcdef}\n"), HasSubstr("a name has 1 to 64 letters"));
  EXPECT_THAT(error("tokens:\n  - {name: a, token: 0123456789abcdef, scopes: [all]}\n"),
              HasSubstr("tokens[0].scopes: expected a list of infer, read and admin"));
  EXPECT_THAT(error("tokens:\n  - {name: a, token: 0123456789abcdef, scopes: read}\n"), HasSubstr("expected a list"));
  EXPECT_THAT(error("tokens:\n  - {name: a, token: 0123456789abcdef, scope: [read]}\n"), HasSubstr("unknown key"));
  EXPECT_THAT(error("tokens:\n  - {name: a, token: 0123456789abcdef}\n  - {name: b, token: 0123456789abcdef}\n"),
              HasSubstr("tokens[1].token: is that of a too"));
  EXPECT_THAT(error("tokens:\n  - {name: a, token: 0123456789abcdef}\n  - {name: a, token: 0123456789abcdeg}\n"),
              HasSubstr("another token has this name"));
  EXPECT_THAT(error("tokens:\n  - {name: a, token: 0123456789abcdef, max_calls: 0}\n"),
              HasSubstr("tokens[0].max_calls"));
  EXPECT_THAT(error("tokens:\n  - {name: a, token: 0123456789abcdef, max_message_bytes: 0}\n"),
              HasSubstr("tokens[0].max_message_bytes: expected 1 to 2^50 bytes"));
}

class TokenFileTest : public ::testing::Test {
 protected:
  TokenFileTest() { Write(kYaml); }

  // Replaces the file, as who rotates tokens does.
  void Write(const std::string& text) {
    WriteFile(folder_ / "new", text);
    std::filesystem::rename(folder_ / "new", path_);
  }

  FakeClock clock_;
  TempFolder folder_;
  const std::string path_ = folder_ / "tokens.yaml";
};

TEST_F(TokenFileTest, AllowsWhatATokensScopesSay) {
  const absl::StatusOr<std::unique_ptr<TokenFile>> file = TokenFile::Open(path_, &clock_);
  ASSERT_THAT(file, IsOk());
  EXPECT_THAT((*file)->Check("of-who-only-reads", Scope::kRead), IsOk());
  EXPECT_THAT((*file)->Check("of-who-does-all-of-it", Scope::kAdmin), IsOk());
  const absl::Status lacks = (*file)->Check("of-who-only-reads", Scope::kAdmin).status();
  EXPECT_TRUE(absl::IsPermissionDenied(lacks)) << lacks;
  EXPECT_EQ(lacks.message(), "the token of grafana lacks the scope admin");
  for (const char* token : {"", "of-who-only-read", "of-who-only-readsx", "of-who-only-readt", "xf-who-only-reads",
                            "of-who-only-readsof-who-only-reads"}) {
    EXPECT_TRUE(absl::IsUnauthenticated((*file)->Check(token, Scope::kRead).status())) << token;
  }
}

TEST_F(TokenFileTest, TakesOverWhatIsRotated) {
  const absl::StatusOr<std::unique_ptr<TokenFile>> file = TokenFile::Open(path_, &clock_);
  ASSERT_THAT(file, IsOk());
  Write("tokens:\n  - {name: grafana, token: another-that-reads, scopes: [read]}\n");
  EXPECT_THAT((*file)->Check("another-that-reads", Scope::kRead), IsOk());
  EXPECT_TRUE(absl::IsUnauthenticated((*file)->Check("of-who-only-reads", Scope::kRead).status()));
}

TEST_F(TokenFileTest, KeepsItsTokensWhileTheFileIsWrongOrGone) {
  const absl::StatusOr<std::unique_ptr<TokenFile>> file = TokenFile::Open(path_, &clock_);
  ASSERT_THAT(file, IsOk());
  Write("tokens: [");
  EXPECT_THAT((*file)->Check("of-who-only-reads", Scope::kRead), IsOk());
  std::filesystem::remove(path_);
  EXPECT_THAT((*file)->Check("of-who-only-reads", Scope::kRead), IsOk());
  Write("tokens:\n  - {name: grafana, token: another-that-reads, scopes: [read]}\n");
  EXPECT_TRUE(absl::IsUnauthenticated((*file)->Check("of-who-only-reads", Scope::kRead).status()));
}

TEST_F(TokenFileTest, ReadsTheFileThatItCouldNotReadOnceItCan) {
  const absl::StatusOr<std::unique_ptr<TokenFile>> file = TokenFile::Open(path_, &clock_);
  ASSERT_THAT(file, IsOk());
  Write("tokens:\n  - {name: grafana, token: another-that-reads, scopes: [read]}\n");
  {
    const NoDescriptors none;
    EXPECT_THAT((*file)->Check("of-who-only-reads", Scope::kRead), IsOk());
  }
  // Not with each call: to fail can take a disk long.
  EXPECT_THAT((*file)->Check("of-who-only-reads", Scope::kRead), IsOk());
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(absl::IsUnauthenticated((*file)->Check("of-who-only-reads", Scope::kRead).status()));
  EXPECT_THAT((*file)->Check("another-that-reads", Scope::kRead), IsOk());
}

TEST_F(TokenFileTest, DoesNotOpenWhatIsNoFileOfTokens) {
  EXPECT_TRUE(absl::IsNotFound(TokenFile::Open(folder_ / "none", &clock_).status()));
  Write("tokens: 1");
  EXPECT_TRUE(absl::IsInvalidArgument(TokenFile::Open(path_, &clock_).status()));
}

}  // namespace
}  // namespace ditserve
