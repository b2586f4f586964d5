#include <filesystem>
#include <limits>
#include <string>
#include <thread>

#include "client/ditctl/tensor_file.h"
#include "nlohmann/json.hpp"
#include "tests/client/fake_server.h"
#include "tests/testing/status_matchers.h"

namespace ditserve::ditctl {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST_F(DitctlTest, ForwardSendsSeededInputsAndShowsWhatCameBack) {
  EXPECT_EQ(Call({"forward", "--height", "64", "--width=32", "--prompt-tokens", "2", "--profile", "disk"}), kOk);
  EXPECT_EQ(server.request.profile(), "disk");
  EXPECT_EQ(server.request.latents().SerializeAsString(),
            SeededTensor(0, "latents", {1, 16, 8, 4}, DType::kBFloat16).SerializeAsString());
  EXPECT_EQ(server.request.prompt_emb().shape(1), 2);
  EXPECT_THAT(out.str(), HasSubstr("output      [1, 4, 64] bfloat16"));
  EXPECT_THAT(out.str(), HasSubstr("time        2.00 s in all"));
  EXPECT_THAT(out.str(), HasSubstr("3.0 MiB from disk"));
  EXPECT_EQ(err.str(), " 50%  module 5 of 10, 3.0 MiB read\n");
}

TEST_F(DitctlTest, ForwardPassesOnWhatItIsTold) {
  EXPECT_EQ(Forward({"--model", "m", "--layout", "latents", "--deadline-seconds", "60"}), kOk);
  EXPECT_EQ(server.request.model(), "m");
  EXPECT_EQ(server.request.output_layout(), v1::OUTPUT_LAYOUT_LATENTS);
  EXPECT_TRUE(server.had_deadline);
  EXPECT_EQ(server.request.residency_case(), v1::ForwardRequest::RESIDENCY_NOT_SET);
  EXPECT_FALSE(server.request.has_vram_limit_gib());
  EXPECT_FALSE(server.request.has_prompt_emb_mask());
}

TEST_F(DitctlTest, WithoutADeadlineForwardWaitsForever) {
  EXPECT_EQ(Forward(), kOk);
  EXPECT_FALSE(server.had_deadline);
}

TEST_F(DitctlTest, TakesOutputsLargerThanGrpcsDefault) {
  *server.response.mutable_output() = ConstantTensor(1, {1, 2 << 20}, DType::kFloat32);  // 8 MiB
  EXPECT_EQ(Forward(), kOk) << err.str();
}

TEST_F(DitctlTest, AVramConfigIsPassedOnAsItIsWritten) {
  const std::string config =
      R"({"offload_dtype": "disk", "computation_dtype": "torch.bfloat16", "module_map": {"a.B": "C"}})";
  EXPECT_EQ(Forward({"--vram-limit-gib", "1.5", "--vram-config", config}), kOk);
  EXPECT_EQ(server.request.vram_config().computation_dtype(), "torch.bfloat16");
  EXPECT_EQ(server.request.vram_config().module_map().at("a.B"), "C");
  EXPECT_EQ(server.request.vram_limit_gib(), 1.5);
  WriteFile(folder / "config.json", config);
  EXPECT_EQ(Forward({"--vram-config", folder / "config.json"}), kOk);
  EXPECT_EQ(server.request.vram_config().offload_dtype(), "disk");
}

TEST_F(DitctlTest, RefusesAVramConfigThatIsNone) {
  EXPECT_EQ(Forward({"--vram-config", R"({"offload_typo": "disk"})"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("offload_typo"));
  EXPECT_EQ(Forward({"--vram-config", "{"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("ditctl: --vram-config: "));
  EXPECT_EQ(Forward({"--vram-config", folder / "none.json"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("none.json"));
  EXPECT_EQ(Forward({"--vram-config", "{}", "--profile", "disk"}), kUsage);
  EXPECT_EQ(err.str(), "ditctl: give either --profile or --vram-config\n");
}

TEST_F(DitctlTest, RefusesValuesOutOfRangeByFlag) {
  EXPECT_EQ(Forward({"--layout", "rows"}), kUsage);
  EXPECT_EQ(err.str(), "ditctl: --layout: expected patches or latents, found 'rows'\n");
  EXPECT_EQ(Forward({"--deadline-seconds", "-1"}), kUsage);
  EXPECT_EQ(err.str(), "ditctl: --deadline-seconds: expected more than 0, found -1\n");
  EXPECT_EQ(Forward({"--wait-seconds=0"}), kUsage);
  EXPECT_EQ(err.str(), "ditctl: --wait-seconds: expected more than 0, found 0\n");
}

TEST_F(DitctlTest, ForwardTakesInputsFromFilesAndSavesTheOutput) {
  const v1::Tensor latents = SeededTensor(1, "x", {2, 16, 2, 2}, DType::kFloat32);
  ASSERT_THAT(WriteTensor(folder / "latents.npy", "", latents), IsOk());
  EXPECT_EQ(Call({"forward", "--latents", folder / "latents.npy", "--output", folder / "out.safetensors"}), kOk)
      << err.str();
  EXPECT_EQ(server.request.latents().SerializeAsString(), latents.SerializeAsString());
  EXPECT_EQ(server.request.height(), 16);
  const auto saved = ReadTensor(folder / "out.safetensors", "output");
  ASSERT_THAT(saved, IsOk());
  EXPECT_EQ(saved->SerializeAsString(), server.response.output().SerializeAsString());
}

TEST_F(DitctlTest, AnInputFileThatIsMissingIsNotMadeUp) {
  EXPECT_EQ(Forward({"--inputs", folder / "none.safetensors"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("none.safetensors"));
  EXPECT_FALSE(server.request.has_latents());
}

TEST_F(DitctlTest, AFreshSeedIsShownAndCanBeUsedAgain) {
  EXPECT_EQ(Forward({"--random"}), kOk);
  const std::string latents = server.request.latents().data();
  const std::string line = err.str().substr(0, err.str().find('\n'));
  ASSERT_EQ(line.rfind("seed ", 0), 0u);
  EXPECT_EQ(Forward({"--seed", line.substr(5)}), kOk);
  EXPECT_EQ(server.request.latents().data(), latents);
}

TEST_F(DitctlTest, AnOutputThatCannotBeSavedIsRefusedBeforeItIsComputed) {
  EXPECT_EQ(Forward({"--output", folder / "none/out.npy"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("ditctl: --output: can't write to folder '"));
  EXPECT_EQ(Forward({"--output", folder / "out.png"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("ditctl: --output: expected a name that ends in .npy or .safetensors"));
  EXPECT_FALSE(server.request.has_latents());
}

TEST_F(DitctlTest, AnInterruptCancelsTheCallAndLeavesNoFile) {
  bool cancelled = false;
  server.during = [&](grpc::ServerContext* context) {
    interrupted = true;
    while (!context->IsCancelled()) std::this_thread::yield();
    cancelled = true;
  };
  EXPECT_EQ(Forward({"--output", folder / "out.npy"}), kInterrupted);
  EXPECT_THAT(err.str(), HasSubstr("ditctl: interrupted\n"));
  EXPECT_THAT(out.str(), IsEmpty());
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  server.Stop();
  EXPECT_TRUE(cancelled);
}

TEST_F(DitctlTest, AnInterruptBehindTheResponseLeavesNoFileEither) {
  server.after = [&] { interrupted = true; };
  EXPECT_EQ(Forward({"--output", folder / "out.npy"}), kInterrupted);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST_F(DitctlTest, AFailedForwardLeavesNoFile) {
  server.status = grpc::Status(grpc::StatusCode::DATA_LOSS, "shard 3 was replaced");
  EXPECT_EQ(Forward({"--output", folder / "out.npy"}), kFailed);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST_F(DitctlTest, AStreamWithoutAResponseIsAnError) {
  server.answers = false;
  EXPECT_EQ(Forward(), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("ditctl: INTERNAL: the server ended the stream without a response\n"));
}

TEST_F(DitctlTest, AnOutputThatDoesNotAddUpIsAnError) {
  server.response.mutable_output()->mutable_data()->resize(3);
  EXPECT_EQ(Forward({"--output", folder / "out.npy"}), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("the server's output is damaged: holds 3 bytes, its shape and dtype take 512\n"));
  server.response.clear_output();
  EXPECT_EQ(Forward(), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("the server's output is damaged: dtype 0"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST_F(DitctlTest, WarnsOfAnOutputThatIsNotFinite) {
  *server.response.mutable_output() = ConstantTensor(std::numeric_limits<float>::quiet_NaN(), {1, 3}, DType::kBFloat16);
  EXPECT_EQ(Forward({"--json"}), kOk);
  EXPECT_THAT(err.str(), HasSubstr("WARNING: 3 elements of the output are NaN or infinite; do not use this result\n"));
  EXPECT_EQ(nlohmann::json::parse(out.str())["output"]["non_finite"], 3);
}

TEST_F(DitctlTest, ShowsResidencyAfterwardsWhereAsked) {
  EXPECT_EQ(Forward(), kOk);
  EXPECT_EQ(out.str().find("MEMORY"), std::string::npos);
  EXPECT_EQ(Forward({"--show-residency"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("\n\nMEMORY  BUDGET"));
}

TEST_F(DitctlTest, JsonIsOneObjectWithEverything) {
  server.residency.add_memories()->set_device("cpu");
  EXPECT_EQ(Forward({"--json", "--show-residency"}), kOk);
  const nlohmann::json json = nlohmann::json::parse(out.str());
  EXPECT_EQ(json["output"]["dtype"], "bfloat16");
  EXPECT_EQ(json["output"]["shape"], nlohmann::json({1, 4, 64}));
  EXPECT_FALSE(json["output"].contains("data"));
  EXPECT_EQ(json["stats"]["total"], "2s");
  EXPECT_EQ(json["stats"]["disk_read_bytes"], "3145728");
  EXPECT_EQ(json["residency"]["memories"][0]["device"], "cpu");
}

}  // namespace
}  // namespace ditserve::ditctl
