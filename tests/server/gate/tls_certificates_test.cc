#include "server/gate/tls_certificates.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "tests/testing/certificates.h"
#include "tests/testing/no_descriptors.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

class TlsCertificatesTest : public ::testing::Test {
 protected:
  // Replaces the files, as who rotates certificates does.
  void Write(const Certificate& certificate) {
    WriteFile(folder_ / "new", certificate.private_key);
    std::filesystem::rename(folder_ / "new", files_.private_key);
    WriteFile(folder_ / "new", certificate.certificate);
    std::filesystem::rename(folder_ / "new", files_.certificate);
  }

  const TempFolder folder_;
  const TlsFiles files_ = {folder_ / "certificate.pem", folder_ / "key.pem", ""};
  const CertificateAuthority authority_;
};

TEST_F(TlsCertificatesTest, AreReadOnceTheyCanBeWhereTheyCouldNotBeAtFirst) {
  Write(authority_.Issue("server"));
  const auto certificates = TlsCertificates::Open(files_);
  ASSERT_THAT(certificates, IsOk());
  const absl::Time first = (*certificates)->not_after();
  // Half of a pair first. (UndefinedBehaviorSanitizer needs descriptors to look at a type that it has not seen.)
  WriteFile(folder_ / "new", authority_.Issue("server", 7200).private_key);
  std::filesystem::rename(folder_ / "new", files_.private_key);
  (*certificates)->Refresh();
  EXPECT_EQ((*certificates)->not_after(), first);
  Write(authority_.Issue("server", 7200));
  {
    const NoDescriptors none;
    for (int looks = 0; looks < 2; ++looks) (*certificates)->Refresh();
    EXPECT_EQ((*certificates)->not_after(), first);
  }
  (*certificates)->Refresh();
  EXPECT_GT((*certificates)->not_after(), first + absl::Minutes(30));
}

}  // namespace
}  // namespace ditserve
