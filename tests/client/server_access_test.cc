#include "client/ditctl/server_access.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve::ditctl {
namespace {

class ServerAccessTest : public ::testing::Test {
 protected:
  std::string File(const std::string& name, const std::string& text) {
    WriteFile(folder_ / name, text);
    return folder_ / name;
  }

  static absl::Status Load(const std::vector<std::string>& arguments) {
    ServerAccess server("127.0.0.1:1");
    CLI::App app;
    server.AddFlags(app, "the server");
    std::string help;
    const absl::Status parsed = ParseFlags(app, arguments, &help);
    return parsed.ok() ? server.Load() : parsed;
  }

  TempFolder folder_;
};

TEST_F(ServerAccessTest, NeedsNoFiles) { EXPECT_THAT(Load({"--address", "127.0.0.1:2"}), IsOk()); }

TEST_F(ServerAccessTest, NamesTheFlagWhoseFileIsMissingOrEmpty) {
  for (const std::string flag : {"--ca", "--certificate", "--private-key", "--token-file"}) {
    EXPECT_THAT(Load({flag, folder_ / "none"}), StatusIs(absl::StatusCode::kNotFound, flag + ": "));
    EXPECT_THAT(Load({flag, File("empty", "")}), StatusIs(absl::StatusCode::kNotFound, flag + ": "));
    EXPECT_THAT(Load({flag, folder_ / ""}), StatusIs(absl::StatusCode::kNotFound, flag + ": "));
  }
}

TEST_F(ServerAccessTest, ShowsACertificateWithItsKeyUnderTlsAlone) {
  const std::string pem = File("pem", "PEM");
  EXPECT_THAT(Load({"--ca", pem, "--certificate", pem}),
              StatusIs(absl::StatusCode::kInvalidArgument, "--certificate and --private-key: expected both"));
  EXPECT_THAT(Load({"--certificate", pem, "--private-key", pem}),
              StatusIs(absl::StatusCode::kInvalidArgument, "--certificate: expected --tls or --ca too"));
  EXPECT_THAT(Load({"--tls", "--certificate", pem, "--private-key", pem}), IsOk());
}

TEST_F(ServerAccessTest, RefusesWhatIsNoToken) {
  EXPECT_THAT(Load({"--token-file", File("token", " 0123456789abcdef \r\nmore\n")}), IsOk());
  for (const char* text : {"\n0123456789abcdef", "two words\n", "caf\xc3\xa9\n"}) {
    EXPECT_THAT(Load({"--token-file", File("token", text)}),
                StatusIs(absl::StatusCode::kInvalidArgument, "begins with no token"));
  }
}

}  // namespace
}  // namespace ditserve::ditctl
