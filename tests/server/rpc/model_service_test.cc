#include "ditserve/v1/model_service.grpc.pb.h"
#include "ditserve/v1/residency_service.grpc.pb.h"
#include "tests/server/server_fixture.h"

namespace ditserve {
namespace {

using grpc::StatusCode;

class ModelServiceTest : public ServerTest {
 protected:
  const std::unique_ptr<v1::ModelService::Stub> models_ = v1::ModelService::NewStub(channel_);
  grpc::ClientContext context_;
};

TEST_F(ModelServiceTest, ListsModelsWithTheirState) {
  ModelInfo ready = TinyModelInfo("a");
  ready.parameters = 12;
  ready.stored_bytes = 24;
  engine_.SetModels({ready, TinyModelInfo("b", false)});
  v1::ListModelsResponse response;
  ASSERT_THAT(models_->ListModels(&context_, {}, &response), IsServed());
  ASSERT_EQ(response.models_size(), 2);
  EXPECT_EQ(response.models(0).name(), "a");
  EXPECT_EQ(response.models(0).type(), "QwenImageDiT");
  EXPECT_EQ(response.models(0).state(), v1::MODEL_STATE_READY);
  EXPECT_EQ(response.models(0).blocks(), 1);
  EXPECT_EQ(response.models(0).parameters(), 12);
  EXPECT_EQ(response.models(0).stored_bytes(), 24);
  EXPECT_EQ(response.models(0).numerics(), v1::NUMERICS_DIFFSYNTH);
  EXPECT_EQ(response.models(1).name(), "b");
  EXPECT_EQ(response.models(1).state(), v1::MODEL_STATE_LOADING);
}

TEST_F(ModelServiceTest, DescribesAModelDownToEachModulesTiers) {
  std::vector<std::vector<Tier>> tiers(TinyModel().modules().size(), {Tier::kDisk});
  tiers[1] = {Tier::kDevice, Tier::kHost, Tier::kDisk};
  engine_.SetTiers(tiers);
  v1::GetModelResponse response;
  ASSERT_THAT(models_->GetModel(&context_, {}, &response), IsServed());
  EXPECT_EQ(response.model().name(), "tiny");
  EXPECT_EQ(response.tree(), TinyModel().tree());
  ASSERT_EQ(response.modules_size(), static_cast<int>(TinyModel().modules().size()));
  for (int i = 0; i < response.modules_size(); ++i) {
    const ModuleSpec& expected = TinyModel().modules()[i];
    const v1::Module& module = response.modules(i);
    EXPECT_EQ(module.path(), expected.path);
    EXPECT_EQ(module.type(), expected.type);
    ASSERT_EQ(module.parameters_size(), static_cast<int>(expected.parameters.size()));
    for (int j = 0; j < module.parameters_size(); ++j) {
      EXPECT_EQ(module.parameters(j).name(), expected.parameters[j].name);
      EXPECT_THAT(module.parameters(j).shape(), ::testing::ElementsAreArray(expected.parameters[j].shape));
      EXPECT_EQ(module.parameters(j).dtype(), v1::DTYPE_BFLOAT16);
    }
  }
  EXPECT_THAT(response.modules(0).tiers(), ::testing::ElementsAre(v1::TIER_DISK));
  EXPECT_THAT(response.modules(1).tiers(), ::testing::ElementsAre(v1::TIER_DEVICE, v1::TIER_HOST, v1::TIER_DISK));
}

TEST_F(ModelServiceTest, RefusesToDescribeAnUnknownModel) {
  v1::GetModelRequest request;
  request.set_model("missing");
  v1::GetModelResponse response;
  EXPECT_THAT(models_->GetModel(&context_, request, &response),
              Refused(StatusCode::NOT_FOUND, "model: \"missing\", expected one of \"tiny\""));
}

TEST_F(ModelServiceTest, RefusesToDescribeAModelThatIsLoading) {
  engine_.SetModels({TinyModelInfo("tiny", false)});
  v1::GetModelResponse response;
  EXPECT_THAT(models_->GetModel(&context_, {}, &response), Refused(StatusCode::UNAVAILABLE, "still loading"));
}

TEST_F(ModelServiceTest, ListsProfilesWithAllEightKeys) {
  v1::ListProfilesResponse response;
  ASSERT_THAT(models_->ListProfiles(&context_, {}, &response), IsServed());
  EXPECT_EQ(response.default_profile(), "disk");
  ASSERT_EQ(response.profiles_size(), 2);
  const v1::Profile& disk = response.profiles(0);
  EXPECT_EQ(disk.name(), "disk");
  EXPECT_EQ(disk.description(), "Weights rest on disk");
  EXPECT_EQ(disk.vram_limit_gib(), 1.5);
  EXPECT_EQ(disk.vram_config().offload_dtype(), "disk");
  EXPECT_EQ(disk.vram_config().offload_device(), "disk");
  EXPECT_EQ(disk.vram_config().onload_dtype(), "bfloat16");
  EXPECT_EQ(disk.vram_config().onload_device(), "accelerator");
  EXPECT_EQ(disk.vram_config().preparing_dtype(), "bfloat16");
  EXPECT_EQ(disk.vram_config().preparing_device(), "accelerator");
  EXPECT_EQ(disk.vram_config().computation_dtype(), "bfloat16");
  EXPECT_EQ(disk.vram_config().computation_device(), "accelerator");
  EXPECT_EQ(disk.vram_config().module_map_size(), 2);
  EXPECT_EQ(response.profiles(1).name(), "resident");
  EXPECT_FALSE(response.profiles(1).has_vram_limit_gib());
}

}  // namespace
}  // namespace ditserve
