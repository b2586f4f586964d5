// ditctl's commands against a server that is made up.
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "client/ditctl/commands.h"
#include "client/ditctl/tensors.h"
#include "core/checkpoint.h"
#include "ditserve/v1/model_service.grpc.pb.h"
#include "ditserve/v1/residency_service.grpc.pb.h"
#include "ditserve/v1/transformer_service.grpc.pb.h"
#include "gmock/gmock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve::ditctl {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Answers as it is told, and keeps the last request.
class FakeServer : public v1::TransformerService::Service,
                   public v1::ModelService::Service,
                   public v1::ResidencyService::Service,
                   public grpc::health::v1::Health::Service {
 public:
  FakeServer() {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.SetMaxReceiveMessageSize(-1);
    builder.RegisterService(static_cast<v1::TransformerService::Service*>(this));
    builder.RegisterService(static_cast<v1::ModelService::Service*>(this));
    builder.RegisterService(static_cast<v1::ResidencyService::Service*>(this));
    builder.RegisterService(static_cast<grpc::health::v1::Health::Service*>(this));
    server_ = builder.BuildAndStart();
    address = "127.0.0.1:" + std::to_string(port);
  }

  grpc::Status ForwardStream(grpc::ServerContext* context, const v1::ForwardStreamRequest* stream_request,
                             grpc::ServerWriter<v1::ForwardStreamResponse>* writer) override {
    request = stream_request->request();
    v1::ForwardStreamResponse event;
    event.mutable_progress()->set_modules_done(5);
    event.mutable_progress()->set_modules_total(10);
    event.mutable_progress()->set_disk_read_bytes(3 << 20);
    writer->Write(event);
    if (during) during(context);
    if (!status.ok()) return status;
    v1::ForwardResponse& response = *event.mutable_response();
    *response.mutable_output() = SeededTensor(3, "output", {1, 4, 64}, DType::kBFloat16);
    response.mutable_stats()->mutable_total()->set_seconds(2);
    response.mutable_stats()->set_disk_read_bytes(3 << 20);
    response.mutable_stats()->set_riders(1);
    writer->Write(event);
    return grpc::Status::OK;
  }
  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest*, v1::GetModelResponse* response) override {
    response->set_tree("QwenImageDiT(\n  (pos_embed): QwenEmbedRope()\n)");
    v1::Module& module = *response->add_modules();
    module.set_path("img_in");
    module.set_type("Linear");
    module.add_tiers("host");
    module.add_tiers("disk");
    return status;
  }
  grpc::Status ListProfiles(grpc::ServerContext*, const v1::ListProfilesRequest*,
                            v1::ListProfilesResponse* response) override {
    v1::Profile& profile = *response->add_profiles();
    profile.set_name("disk");
    profile.mutable_vram_config()->set_offload_device("disk");
    profile.mutable_vram_config()->set_computation_dtype("bfloat16");
    profile.mutable_vram_config()->set_computation_device("accelerator");
    profile.mutable_vram_limit_gib()->set_value(0);
    response->set_default_profile("disk");
    return status;
  }
  grpc::Status GetResidency(grpc::ServerContext*, const v1::GetResidencyRequest*,
                            v1::GetResidencyResponse* response) override {
    response->set_device("cpu");
    v1::MemoryUse& memory = *response->add_memories();
    memory.set_memory("device");
    memory.set_budget_bytes(int64_t{2} << 30);
    memory.set_weights_bytes(3 << 20);
    return status;
  }
  grpc::Status Check(grpc::ServerContext*, const grpc::health::v1::HealthCheckRequest*,
                     grpc::health::v1::HealthCheckResponse* response) override {
    response->set_status(serving ? grpc::health::v1::HealthCheckResponse::SERVING
                                 : grpc::health::v1::HealthCheckResponse::NOT_SERVING);
    return grpc::Status::OK;
  }

  std::string address;
  grpc::Status status;
  bool serving = true;
  std::function<void(grpc::ServerContext*)> during;
  v1::ForwardRequest request;

 private:
  std::unique_ptr<grpc::Server> server_;
};

class DitctlTest : public ::testing::Test {
 protected:
  int Call(std::vector<std::string> arguments) {
    out.str("");
    err.str("");
    return ditctl::Run(arguments, {server.address, out, err, /*err_is_terminal=*/false, interrupted});
  }

  FakeServer server;
  TempFolder folder;
  std::ostringstream out, err;
  std::atomic<bool> interrupted = false;
};

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

TEST_F(DitctlTest, ForwardTakesInputsFromFilesAndSavesTheOutput) {
  const v1::Tensor latents = SeededTensor(1, "x", {2, 16, 2, 2}, DType::kFloat32);
  ASSERT_THAT(WriteTensor(folder / "latents.npy", "", latents), IsOk());
  ASSERT_THAT(
      WriteTensor(folder / "in.safetensors", "prompt_emb", SeededTensor(1, "p", {2, 3, 3584}, DType::kBFloat16)),
      IsOk());
  EXPECT_EQ(Call({"forward", "--height", "16", "--width", "16", "--latents", folder / "latents.npy", "--inputs",
                  folder / "in.safetensors", "--output", folder / "out.safetensors"}),
            kOk)
      << err.str();
  EXPECT_EQ(server.request.latents().SerializeAsString(), latents.SerializeAsString());
  EXPECT_EQ(server.request.timestep().shape(0), 2);
  const auto saved = ReadTensor(folder / "out.safetensors", "output");
  ASSERT_THAT(saved, IsOk());
  EXPECT_EQ(saved->SerializeAsString(), SeededTensor(3, "output", {1, 4, 64}, DType::kBFloat16).SerializeAsString());
}

TEST_F(DitctlTest, AVramConfigIsPassedOnAsItIsWritten) {
  EXPECT_EQ(Call({"forward", "--height", "16", "--width", "16", "--vram-limit-gib", "1.5", "--vram-config",
                  R"({"offload_dtype": "disk", "computation_dtype": "torch.bfloat16"})"}),
            kOk);
  EXPECT_EQ(server.request.vram_config().computation_dtype(), "torch.bfloat16");
  EXPECT_EQ(server.request.vram_limit_gib().value(), 1.5);
  EXPECT_EQ(Call({"forward", "--vram-config", R"({"offload_typo": "disk"})"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("offload_typo"));
}

TEST_F(DitctlTest, AnErrorShowsItsCodeItsMessageAndWhatToDo) {
  const std::vector<std::string> forward = {"forward", "--height", "16", "--width", "16"};
  server.status = grpc::Status(grpc::StatusCode::NOT_FOUND, "profile: no profile is named 'x'");
  EXPECT_EQ(Call(forward), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("ditctl: NOT_FOUND: profile: no profile is named 'x'\n  see `ditctl profiles`"));
  server.status = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "64 requests are waiting");
  EXPECT_EQ(Call(forward), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("try again later"));
  server.status = grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "height: 17");
  EXPECT_EQ(Call(forward), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("INVALID_ARGUMENT: height: 17\n"));
}

TEST_F(DitctlTest, SaysWhereNoServerListens) {
  EXPECT_EQ(Call({"models", "--address", "unix:" + (folder / "none")}), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("UNAVAILABLE"));
  EXPECT_THAT(err.str(), HasSubstr("is the server running and ready at unix:"));
}

TEST_F(DitctlTest, AnInterruptCancelsTheCallAndLeavesNoFile) {
  server.during = [&](grpc::ServerContext* context) {
    interrupted = true;
    while (!context->IsCancelled()) {
    }
  };
  EXPECT_EQ(Call({"forward", "--height", "16", "--width", "16", "--output", folder / "out.npy"}), kInterrupted);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST_F(DitctlTest, AnOutputThatCannotBeWrittenLeavesNothingHalfWritten) {
  EXPECT_EQ(Call({"forward", "--height", "16", "--width", "16", "--output", folder / "none/out.npy"}), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("out.npy"));
}

TEST_F(DitctlTest, ModelPrintsTheTreeAsTheServerSendsIt) {
  EXPECT_EQ(Call({"model"}), kOk);
  EXPECT_EQ(out.str(), "QwenImageDiT(\n  (pos_embed): QwenEmbedRope()\n)\n");
  EXPECT_EQ(Call({"model", "--modules"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("img_in  Linear              host, disk"));
}

TEST_F(DitctlTest, ProfilesShowsStationsLimitAndDefault) {
  EXPECT_EQ(Call({"profiles"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("disk *"));
  EXPECT_THAT(out.str(), HasSubstr("bfloat16 on accelerator  0 GiB"));
  EXPECT_EQ(Call({"profiles", "--json"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("\"default_profile\": \"disk\""));
}

TEST_F(DitctlTest, ResidencyShowsBudgetsAndUse) {
  EXPECT_EQ(Call({"residency"}), kOk);
  EXPECT_THAT(out.str(), HasSubstr("Computes on cpu"));
  EXPECT_THAT(out.str(), HasSubstr("device  2.0 GiB  3.0 MiB  0 B"));
}

TEST_F(DitctlTest, HealthTellsByItsExitCode) {
  EXPECT_EQ(Call({"health"}), kOk);
  EXPECT_EQ(out.str(), "SERVING\n");
  server.serving = false;
  EXPECT_EQ(Call({"health"}), kFailed);
  EXPECT_EQ(out.str(), "NOT_SERVING\n");
}

TEST_F(DitctlTest, WaitsForAServerOnlyAsLongAsItIsTold) {
  server.serving = false;
  EXPECT_EQ(Call({"forward", "--wait-seconds", "0.2"}), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("was not ready within 200ms"));
}

TEST_F(DitctlTest, RefusesUnknownCommandsAndFlagsByName) {
  EXPECT_EQ(Call({"fly"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("'fly'"));
  EXPECT_EQ(Call({"forward", "--hight", "64"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("unknown flag --hight; valid: "));
  EXPECT_EQ(Call({"forward", "--height", "tall"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("--height: expected an integer, found 'tall'"));
  EXPECT_EQ(Call({"forward", "--height", "-5"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("--height: expected 1 to 65536"));
  EXPECT_EQ(Call({"models", "extra"}), kUsage);
  EXPECT_EQ(Call({}), kUsage);
}

TEST_F(DitctlTest, EveryCommandExplainsItself) {
  for (const char* command : {"forward", "model", "models", "profiles", "residency", "health", "make-checkpoint"}) {
    EXPECT_EQ(Call({command, "--help"}), kOk) << command;
    EXPECT_THAT(out.str(), HasSubstr(std::string("Usage: ditctl ") + command));
  }
}

TEST_F(DitctlTest, MakeCheckpointRefusesWhatItCannotMake) {
  EXPECT_EQ(Call({"make-checkpoint", "--blocks", "0", "--out", folder / "x"}), kUsage);
  EXPECT_EQ(Call({"make-checkpoint"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("--out DIR is needed"));
  EXPECT_EQ(Call({"make-checkpoint", "--dtype", "int8", "--out", folder / "x"}), kUsage);
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
