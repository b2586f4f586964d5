#include "tests/client/fake_server.h"

namespace ditserve::ditctl {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST_F(DitctlTest, ModelPrintsTheTreeAsTheServerSendsIt) {
  server.get_model.set_tree("QwenImageDiT(\n  (pos_embed): QwenEmbedRope()\n)");
  EXPECT_EQ(Call({"model", "qwen"}), kOk);
  EXPECT_EQ(out.str(), "QwenImageDiT(\n  (pos_embed): QwenEmbedRope()\n)\n");
  EXPECT_EQ(server.model, "qwen");
}

TEST_F(DitctlTest, ModelListsModulesWhereAsked) {
  server.get_model.add_modules()->set_path("img_in");
  EXPECT_EQ(Call({"model", "--modules"}), kOk);
  EXPECT_EQ(out.str(), "MODULE  TYPE  PARAMETERS  TIERS\nimg_in\n");
  EXPECT_EQ(server.model, "");
}

TEST_F(DitctlTest, QueriesPrintJsonWhereAsked) {
  server.list_profiles.set_default_profile("disk");
  EXPECT_EQ(Call({"profiles", "--json"}), kOk);
  EXPECT_EQ(out.str(), "{\n \"profiles\": [],\n \"default_profile\": \"disk\"\n}\n");
  server.list_models.add_models()->set_name("qwen");
  EXPECT_EQ(Call({"models", "--json"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("\"name\": \"qwen\""));
  server.residency.add_memories()->set_device("cpu");
  EXPECT_EQ(Call({"residency", "--json"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("\"device\": \"cpu\""));
  server.get_model.set_tree("Tree()");
  EXPECT_EQ(Call({"model", "--json"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("\"tree\": \"Tree()\""));
}

TEST_F(DitctlTest, QueriesFailWithTheServersError) {
  server.status = grpc::Status(grpc::StatusCode::NOT_FOUND, "model: \"x\", expected one of \"qwen\"");
  EXPECT_EQ(Call({"model", "x"}), kFailed);
  EXPECT_EQ(err.str(), "ditctl: NOT_FOUND: model: \"x\", expected one of \"qwen\"\n");
  EXPECT_THAT(out.str(), IsEmpty());
}

TEST_F(DitctlTest, RefusesASecondModel) {
  EXPECT_EQ(Call({"model", "a", "b"}), kUsage);
  EXPECT_EQ(err.str(), "ditctl: unexpected argument 'b'\n");
}

TEST_F(DitctlTest, HealthTellsByItsExitCode) {
  EXPECT_EQ(Call({"health"}), kOk);
  EXPECT_EQ(out.str(), "SERVING\n");
  EXPECT_EQ(server.health_service, "readiness");
  server.serving = false;
  EXPECT_EQ(Call({"health", "--service", "liveness"}), kFailed);
  EXPECT_EQ(out.str(), "NOT_SERVING\n");
  EXPECT_EQ(server.health_service, "liveness");
}

}  // namespace
}  // namespace ditserve::ditctl
