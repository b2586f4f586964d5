#include "client/ditctl/print.h"

#include <gtest/gtest.h>

#include <limits>

#include "client/ditctl/tensors.h"

namespace ditserve::ditctl {
namespace {

v1::Tensor FloatTensor(const std::vector<float>& values) {
  v1::Tensor tensor;
  tensor.set_dtype(v1::DTYPE_FLOAT32);
  tensor.add_shape(static_cast<int64_t>(values.size()));
  tensor.set_data(values.data(), values.size() * sizeof(float));
  return tensor;
}

TEST(PrintTest, BytesAreInTheLargestUnitThatFits) {
  EXPECT_EQ(Bytes(0), "0 B");
  EXPECT_EQ(Bytes(1023), "1023 B");
  EXPECT_EQ(Bytes(1536), "1.5 KiB");
  EXPECT_EQ(Bytes((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(Bytes(int64_t{41} << 30), "41.0 GiB");
  EXPECT_EQ(Bytes(std::numeric_limits<int64_t>::max()), "8388608.0 TiB");
}

TEST(PrintTest, SecondsHaveTwoDecimals) {
  google::protobuf::Duration duration;
  duration.set_seconds(12);
  duration.set_nanos(345'000'000);
  EXPECT_EQ(Seconds(duration), "12.35 s");
}

TEST(PrintTest, StatisticsAreOfTheFiniteValues) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const Statistics statistics = StatisticsOf(FloatTensor({-1, nan, 3, infinity, -infinity}));
  EXPECT_EQ(statistics.mean, 1);
  EXPECT_EQ(statistics.deviation, 2);
  EXPECT_EQ(statistics.min, -1);
  EXPECT_EQ(statistics.max, 3);
  EXPECT_EQ(statistics.non_finite, 3);
}

TEST(PrintTest, AnOutputIsDescribedByItsDistribution) {
  const v1::Tensor output = FloatTensor({-1, 3});
  EXPECT_EQ(Describe(output, StatisticsOf(output)),
            "output      [2] float32\n"
            "            mean 1.00000, deviation 2.00000, min -1.00000, max 3.00000, non-finite 0\n");
  EXPECT_EQ(NonFiniteWarning(StatisticsOf(output)), "");
}

TEST(PrintTest, StatsTellTimeBytesAndRiders) {
  v1::ForwardStats stats;
  stats.mutable_queue()->set_nanos(250'000'000);
  stats.mutable_stall()->set_seconds(1);
  stats.mutable_compute()->set_seconds(20);
  stats.mutable_total()->set_seconds(22);
  stats.set_disk_read_bytes(int64_t{41} << 30);
  stats.set_device_copy_bytes(5 << 20);
  stats.set_peak_device_bytes(int64_t{3} << 29);
  stats.set_riders(4);
  stats.set_device("cuda:1");
  EXPECT_EQ(Describe(stats),
            "time        22.00 s in all: queue 0.25 s, stall 1.00 s, compute 20.00 s\n"
            "moved       41.0 GiB from disk, 5.0 MiB to the device\n"
            "device      1.5 GiB at most, riders 4, on cuda:1\n");
}

TEST(PrintTest, ResidencyTellsWhereEveryByteIs) {
  v1::Residency residency;
  v1::MemoryUse& memory = *residency.add_memories();
  memory.set_tier(v1::TIER_DEVICE);
  memory.set_device("cpu");
  memory.set_budget_bytes(int64_t{2} << 30);
  memory.set_weights_bytes(3 << 20);
  memory.set_staging_bytes(1 << 10);
  memory.set_modulation_bytes(4 << 10);
  memory.set_runtime_bytes(2 << 10);
  memory.set_peak_bytes(5 << 20);
  v1::ModelResidency& model = *residency.add_models();
  model.set_model("qwen");
  model.set_device_bytes(3 << 20);
  model.set_disk_bytes(int64_t{40} << 30);
  v1::Rider& rider = *residency.add_riders();
  rider.set_model("qwen");
  rider.set_device("cpu");
  rider.set_modules_done(3);
  rider.set_modules_total(9);
  residency.set_requests_waiting(2);
  EXPECT_EQ(Describe(residency),
            "MEMORY      BUDGET   WEIGHTS  STAGING  ACTIVATIONS  MODULATION  RUNTIME  PEAK\n"
            "device cpu  2.0 GiB  3.0 MiB  1.0 KiB  0 B          4.0 KiB     2.0 KiB  5.0 MiB\n\n"
            "MODEL  DEVICE   HOST  DISK\n"
            "qwen   3.0 MiB  0 B   40.0 GiB\n\n"
            "RIDER  PROFILE   DEVICE  MODULES  STALL\n"
            "qwen   (inline)  cpu     3 of 9   0.00 s\n\n"
            "2 requests wait\n");
}

TEST(PrintTest, ProfilesShowStationsLimitAndDefault) {
  v1::ListProfilesResponse profiles;
  profiles.set_default_profile("disk");
  for (const char* name : {"disk", "host"}) {
    v1::Profile& profile = *profiles.add_profiles();
    profile.set_name(name);
    profile.set_description(std::string("rests on ") + name);
    v1::VramConfig& config = *profile.mutable_vram_config();
    config.set_offload_device(name);
    config.set_offload_dtype("bfloat16");
    config.set_onload_device("cpu");
    config.set_onload_dtype("float8_e4m3fn");
    config.set_preparing_device("accelerator");
    config.set_preparing_dtype("bfloat16");
    config.set_computation_device("accelerator");
    config.set_computation_dtype("float32");
  }
  profiles.mutable_profiles(0)->set_vram_limit_gib(1.5);
  EXPECT_EQ(Describe(profiles),
            "PROFILE  OFFLOAD           ONLOAD                PREPARING                COMPUTATION             LIMIT"
            "    DESCRIPTION\n"
            "disk *   disk              float8_e4m3fn on cpu  bfloat16 on accelerator  float32 on accelerator  1.5 GiB"
            "  rests on disk\n"
            "host     bfloat16 on host  float8_e4m3fn on cpu  bfloat16 on accelerator  float32 on accelerator  budget"
            "   rests on host\n"
            "* for requests that name none\n");
}

TEST(PrintTest, ModelsShowSizeAndState) {
  v1::ListModelsResponse models;
  v1::Model& model = *models.add_models();
  model.set_name("qwen");
  model.set_type("QwenImageDiT");
  model.set_state(v1::MODEL_STATE_READY);
  model.set_blocks(60);
  model.set_parameters(20'430'401'088);
  model.set_stored_bytes(int64_t{40'860'802'176});
  model.set_numerics(v1::NUMERICS_DIFFUSERS);
  EXPECT_EQ(Describe(models),
            "MODEL  TYPE          BLOCKS  PARAMETERS  STORED    NUMERICS   STATE\n"
            "qwen   QwenImageDiT  60      20.43 B     38.1 GiB  diffusers  ready\n");
}

TEST(PrintTest, ModulesShowShapesDTypeAndTiers) {
  v1::GetModelResponse model;
  v1::Module& module = *model.add_modules();
  module.set_path("img_in");
  module.set_type("Linear");
  v1::Parameter& weight = *module.add_parameters();
  weight.set_name("weight");
  weight.add_shape(3072);
  weight.add_shape(64);
  weight.set_dtype(v1::DTYPE_BFLOAT16);
  module.add_tiers(v1::TIER_HOST);
  module.add_tiers(v1::TIER_DISK);
  EXPECT_EQ(DescribeModules(model),
            "MODULE  TYPE    PARAMETERS                  TIERS\n"
            "img_in  Linear  weight [3072, 64] bfloat16  host, disk\n");
}

}  // namespace
}  // namespace ditserve::ditctl
