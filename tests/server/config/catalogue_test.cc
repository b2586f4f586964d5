#include "server/config/catalogue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "server/config/config.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using ::testing::ElementsAre;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotFound = absl::StatusCode::kNotFound;
constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;

absl::StatusOr<ServerConfig> Parse(const std::string& yaml) { return ParseConfig(yaml, "c.yaml"); }

TEST(CatalogueTest, ShipsProfilesThatResolveOnEveryDevice) {
  absl::StatusOr<ServerConfig> config = Parse("");
  ASSERT_THAT(config, IsOk());
  for (const char* device : {"cpu", "cuda:0", "cuda:3"}) {
    config->devices = {device};
    const absl::StatusOr<ProfileCatalogue> catalogue = MakeCatalogue(*config);
    ASSERT_THAT(catalogue, IsOk()) << device;
    EXPECT_EQ(catalogue->default_profile, "disk");
    std::vector<std::string> names;
    for (const Profile& profile : catalogue->profiles) {
      names.push_back(profile.name);
      EXPECT_FALSE(profile.description.empty()) << profile.name;
    }
    EXPECT_THAT(names, ElementsAre("resident", "host-offload", "fp8-host", "dynamic", "disk", "disk-fp8-device",
                                   "fp8-compute"));
  }
}

TEST(CatalogueTest, ShipsProfilesThatMeanWhatTheirNamesSay) {
  const absl::StatusOr<ProfileCatalogue> catalogue = MakeCatalogue(*Parse(""));
  ASSERT_THAT(catalogue, IsOk());
  const Station disk{Tier::kDisk, DType::kBFloat16}, host{Tier::kHost, DType::kBFloat16};
  const Station device{Tier::kDevice, DType::kBFloat16}, fp8_host{Tier::kHost, DType::kFloat8E4M3};
  const Station fp8_device{Tier::kDevice, DType::kFloat8E4M3};
  struct Expected {
    Station rest, preparing;
    std::optional<int64_t> limit;
    Station computation = {Tier::kDevice, DType::kBFloat16};
  };
  const std::vector<Expected> expected = {{device, device, std::nullopt},
                                          {host, device, 0},
                                          {fp8_host, device, 0},
                                          {host, device, std::nullopt},
                                          {disk, device, 0},
                                          {disk, fp8_device, std::nullopt},
                                          {fp8_host, fp8_device, std::nullopt, fp8_device}};
  ASSERT_EQ(catalogue->profiles.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const Profile& profile = catalogue->profiles[i];
    EXPECT_EQ(profile.offload, expected[i].rest) << profile.name;
    EXPECT_EQ(profile.onload, expected[i].rest) << profile.name;
    EXPECT_EQ(profile.preparing, expected[i].preparing) << profile.name;
    EXPECT_EQ(profile.computation, expected[i].computation) << profile.name;
    // DiffSynth-Studio can't multiply with norms' weights in float8: they are left as they are stored.
    EXPECT_EQ(profile.Manages("RMSNorm"), expected[i].computation == device) << profile.name;
    EXPECT_EQ(profile.vram_limit_bytes, expected[i].limit) << profile.name;
  }
}

TEST(CatalogueTest, AddsAProfileToTheShippedOnes) {
  const absl::StatusOr<ServerConfig> config = Parse(R"(
profiles:
  mine:
    description: Mine
    offload_dtype: disk
    onload_dtype: null
    computation_dtype: torch.float32
    module_map: {torch.nn.Linear: AutoWrappedLinear}
    vram_limit_gib: 1.5
)");
  ASSERT_THAT(config, IsOk());
  ASSERT_EQ(config->profiles.size(), 8u);
  const absl::StatusOr<ProfileCatalogue> catalogue = MakeCatalogue(*config);
  ASSERT_THAT(catalogue, IsOk());
  const Profile& mine = catalogue->profiles.back();
  EXPECT_EQ(mine.name, "mine");
  EXPECT_EQ(mine.description, "Mine");
  EXPECT_EQ(mine.offload.tier, Tier::kDisk);
  EXPECT_EQ(mine.onload, mine.computation);
  EXPECT_EQ(mine.computation.dtype, DType::kFloat32);
  EXPECT_THAT(mine.managed_types, ElementsAre("Linear"));
  EXPECT_EQ(mine.vram_limit_bytes, int64_t{3} << 29);
}

TEST(CatalogueTest, RefusesAProfileThatIsNotForThisDevice) {
  const absl::StatusOr<ServerConfig> config =
      Parse("profiles: {mine: {computation_dtype: float32, onload_device: cuda}}");
  ASSERT_THAT(config, IsOk());
  EXPECT_THAT(MakeCatalogue(*config),
              StatusIs(kPrecondition, "c.yaml:1:47: profiles.mine.onload_device: 'cuda' is not here"));
}

TEST(CatalogueTest, RefusesAProfileThatCantBe) {
  const absl::StatusOr<ServerConfig> config = Parse("profiles: {mine: {computation_dtype: int4}}");
  ASSERT_THAT(config, IsOk());
  EXPECT_THAT(MakeCatalogue(*config),
              StatusIs(kInvalid, "c.yaml:1:19: profiles.mine.computation_dtype: unknown dtype 'int4'"));
  const absl::StatusOr<ServerConfig> missing = Parse("profiles:\n  disk: {offload_dtype: disk}");
  ASSERT_THAT(missing, IsOk());
  EXPECT_THAT(MakeCatalogue(*missing), StatusIs(kInvalid, "c.yaml:2:9: profiles.disk.computation_dtype: "));
}

TEST(CatalogueTest, RefusesADefaultProfileThatIsNotThere) {
  const absl::StatusOr<ServerConfig> config = Parse("default_profile: fast");
  ASSERT_THAT(config, IsOk());
  EXPECT_THAT(MakeCatalogue(*config),
              StatusIs(kNotFound,
                       "c.yaml:1:1: default_profile: no profile is named 'fast'; there are: resident, host-offload"));
}

TEST(CatalogueTest, AProfileMayNameAnyOfTheDevices) {
  const auto config = Parse(
      "device: {name: ['cuda:0', 'cuda:1']}\n"
      "profiles: {mine: {computation_dtype: bfloat16, computation_device: 'cuda:1'}}");
  ASSERT_THAT(config, IsOk());
  const auto catalogue = MakeCatalogue(*config);
  ASSERT_THAT(catalogue, IsOk());
  EXPECT_EQ(catalogue->profiles.back().device, "cuda:1");
  EXPECT_EQ(catalogue->profiles.front().device, "");
}

}  // namespace
}  // namespace ditserve
