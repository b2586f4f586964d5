#include "core/placement/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using ::testing::ElementsAre;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;
constexpr Station kDisk{Tier::kDisk, DType::kBFloat16};
constexpr Station kHost{Tier::kHost, DType::kBFloat16};
constexpr Station kDevice{Tier::kDevice, DType::kBFloat16};

const ProfileTarget kCpu{{"cpu"}, {"Linear", "RMSNorm"}};
const ProfileTarget kCuda{{"cuda:0"}, {"Linear", "RMSNorm"}};

// The dict of DiffSynth-Studio's documentation on fine-grained management, for `device`.
VramConfig Documented(const std::string& device) {
  VramConfig config;
  config.offload_dtype = config.onload_dtype = config.preparing_dtype = config.computation_dtype = "torch.bfloat16";
  config.offload_device = config.onload_device = "cpu";
  config.preparing_device = config.computation_device = device;
  return config;
}

// Only the computation dtype, which alone is required.
VramConfig Least() {
  VramConfig config;
  config.computation_dtype = "bfloat16";
  return config;
}

absl::StatusOr<Profile> Resolve(const VramConfig& config, const ProfileTarget& target = kCpu,
                                std::optional<double> limit_gib = std::nullopt) {
  return ResolveProfile("", config, limit_gib, target, "vram_config");
}

void ExpectStations(const absl::StatusOr<Profile>& profile, Station offload, Station onload, Station preparing) {
  ASSERT_THAT(profile, IsOk());
  EXPECT_EQ(profile->offload, offload);
  EXPECT_EQ(profile->onload, onload);
  EXPECT_EQ(profile->preparing, preparing);
  EXPECT_EQ(profile->computation.tier, Tier::kDevice);
}

TEST(ProfileTest, TakesTheDocumentedDictOnTheDeviceItNames) {
  ExpectStations(Resolve(Documented("cuda"), kCuda), kHost, kHost, kDevice);
  ExpectStations(Resolve(Documented("cuda:0"), kCuda), kHost, kHost, kDevice);
}

TEST(ProfileTest, TakesTheAcceleratorOnEveryServer) {
  ExpectStations(Resolve(Documented("accelerator"), kCuda), kHost, kHost, kDevice);
  ExpectStations(Resolve(Documented("accelerator"), kCpu), kHost, kHost, kDevice);
}

TEST(ProfileTest, TakesTheDocumentedDiskOffload) {
  VramConfig config = Documented("cuda");
  config.offload_dtype = config.offload_device = config.onload_dtype = config.onload_device = "disk";
  ExpectStations(Resolve(config, kCuda), kDisk, kDisk, kDevice);
}

TEST(ProfileTest, ReadsCpuAsTheHostExceptWhereACpuServerComputes) {
  ExpectStations(Resolve(Documented("cpu"), kCpu), kHost, kHost, kHost);
}

TEST(ProfileTest, KeepsEachStationsOwnDtype) {
  VramConfig config = Documented("accelerator");
  config.offload_dtype = "float8_e4m3fn";
  config.onload_dtype = "torch.float16";
  config.preparing_dtype = "torch.float32";
  ExpectStations(Resolve(config), {Tier::kHost, DType::kFloat8E4M3}, {Tier::kHost, DType::kFloat16},
                 {Tier::kDevice, DType::kFloat32});
}

TEST(ProfileTest, FallsBackToComputation) { ExpectStations(Resolve(Least()), kDevice, kDevice, kDevice); }

TEST(ProfileTest, FallsBackToDiskWhereTheDtypeIsDisk) {
  VramConfig config = Least();
  config.offload_dtype = "disk";
  ExpectStations(Resolve(config), kDisk, kDevice, kDevice);
}

TEST(ProfileTest, FallsBackToTheDtypeDiskWhereTheDeviceIsDisk) {
  VramConfig config = Least();
  config.offload_device = config.onload_device = "disk";
  ExpectStations(Resolve(config), kDisk, kDisk, kDevice);
}

TEST(ProfileTest, ManagesEveryTypeUnlessAMapSaysOtherwise) {
  VramConfig config = Least();
  EXPECT_THAT(Resolve(config)->managed_types, ElementsAre("Linear", "RMSNorm"));
  config.module_map = {{"torch.nn.Linear", "diffsynth.core.vram.layers.AutoWrappedLinear"}};
  const absl::StatusOr<Profile> profile = Resolve(config);
  ASSERT_THAT(profile, IsOk());
  EXPECT_TRUE(profile->Manages("Linear"));
  EXPECT_FALSE(profile->Manages("RMSNorm"));
}

TEST(ProfileTest, TakesEveryWrapperUnderAnyPrefix) {
  VramConfig config = Least();
  for (const char* wrapper : {"AutoWrappedModule", "vram.AutoWrappedNonRecurseModule", "a.b.AutoWrappedLinear"}) {
    config.module_map = {{"Linear", wrapper}};
    EXPECT_THAT(Resolve(config), IsOk()) << wrapper;
  }
  config.module_map = {{"diffsynth.models.qwen_image_dit.RMSNorm", "AutoWrappedModule"}};
  EXPECT_THAT(Resolve(config)->managed_types, ElementsAre("RMSNorm"));
}

TEST(ProfileTest, RoundsTheLimitDownToBytes) {
  EXPECT_EQ(Resolve(Least(), kCpu)->vram_limit_bytes, std::nullopt);
  EXPECT_EQ(Resolve(Least(), kCpu, 0)->vram_limit_bytes, 0);
  EXPECT_EQ(Resolve(Least(), kCpu, 1.5)->vram_limit_bytes, int64_t{3} << 29);
  EXPECT_EQ(VramLimitBytes(1.9 / (1 << 30), "limit").value(), 1);
  EXPECT_EQ(VramLimitBytes(1 << 20, "limit").value(), int64_t{1} << 50);
}

TEST(ProfileTest, RefusesALimitThatIsNone) {
  for (const double limit : {-1.0, -1e-300, std::nan(""), std::numeric_limits<double>::infinity(), 1048576.5}) {
    EXPECT_THAT(Resolve(Least(), kCpu, limit),
                StatusIs(kInvalid, "vram_config.vram_limit_gib: expected 0 to 1048576 GiB, found "))
        << limit;
  }
}

TEST(ProfileTest, RefusesAComputationDtypeThatCantBe) {
  VramConfig config;
  EXPECT_THAT(
      Resolve(config),
      StatusIs(kInvalid, "vram_config.computation_dtype: missing; valid: float32, bfloat16, float16, float8_e4m3fn"));
  for (const auto& [dtype, what] :
       std::vector<std::pair<std::string, std::string>>{{"disk", "'disk' can't compute"},
                                                        {"int8", "unknown dtype 'int8'"},
                                                        {"torch.torch.float32", "unknown dtype 'torch.torch.float32'"},
                                                        {"", "unknown dtype ''"}}) {
    config.computation_dtype = dtype;
    EXPECT_THAT(Resolve(config), StatusIs(kInvalid, "vram_config.computation_dtype: " + what +
                                                        "; valid: float32, bfloat16, float16, float8_e4m3fn"));
  }
}

TEST(ProfileTest, ComputesInAnyDtypeOfWeights) {
  VramConfig config = Least();
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3}) {
    for (const char* prefix : {"", "torch."}) {
      config.computation_dtype = absl::StrCat(prefix, Name(dtype));
      const absl::StatusOr<Profile> profile = Resolve(config);
      ASSERT_THAT(profile, IsOk());
      EXPECT_EQ(profile->computation.dtype, dtype);
      EXPECT_EQ(profile->preparing.dtype, dtype) << "where it is left out, as computation";
    }
  }
}

TEST(ProfileTest, InFloat8LinearsMultiplyWhoseSidesAreMultiplesOf16AndTheRestIsBFloat16) {
  const auto in_float8 = [](const std::string& type, const std::vector<int64_t>& shape) {
    return ComputationDType({"module", type, {{"weight", shape}, {"bias", {shape[0]}}}}, DType::kFloat8E4M3);
  };
  EXPECT_EQ(in_float8("Linear", {64, 3072}), DType::kFloat8E4M3);
  EXPECT_EQ(in_float8("Linear", {16, 16}), DType::kFloat8E4M3);
  EXPECT_EQ(in_float8("Linear", {24, 3072}), DType::kBFloat16);
  EXPECT_EQ(in_float8("Linear", {3072, 24}), DType::kBFloat16);
  EXPECT_EQ(in_float8("RMSNorm", {128}), DType::kBFloat16);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    EXPECT_EQ(ComputationDType({"module", "Linear", {{"weight", {24, 24}}}}, dtype), dtype);
  }
}

TEST(ProfileTest, RefusesComputationOnDisk) {
  VramConfig config = Least();
  config.computation_device = "disk";
  EXPECT_THAT(Resolve(config),
              StatusIs(kInvalid, "vram_config.computation_device: 'disk' can't compute; valid: accelerator"));
}

TEST(ProfileTest, RefusesAnUnknownDtypeOfAnyState) {
  for (const auto& [key, field] :
       {std::pair("offload_dtype", &VramConfig::offload_dtype), std::pair("onload_dtype", &VramConfig::onload_dtype),
        std::pair("preparing_dtype", &VramConfig::preparing_dtype)}) {
    VramConfig config = Least();
    config.*field = "bf16";
    EXPECT_THAT(Resolve(config), StatusIs(kInvalid, std::string("vram_config.") + key +
                                                        ": unknown dtype 'bf16'; valid: float32, bfloat16, float16, "
                                                        "float8_e4m3fn, disk"));
  }
}

TEST(ProfileTest, RefusesAnUnknownDevice) {
  for (const char* device : {"gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cuda: 1", "cuda:01", "cuda:1000", ""}) {
    VramConfig config = Least();
    config.onload_device = device;
    EXPECT_THAT(Resolve(config), StatusIs(kInvalid, std::string("vram_config.onload_device: unknown device '") +
                                                        device + "'; valid: disk, cpu, cuda, cuda:N, accelerator"));
  }
}

TEST(ProfileTest, OnSeveralDevicesOneMayBeNamed) {
  const ProfileTarget two{{"cuda:0", "cuda:1"}, {"Linear", "RMSNorm"}};
  EXPECT_EQ(Resolve(Documented("cuda:1"), two)->device, "cuda:1");
  for (const char* whichever : {"accelerator", "cuda"}) EXPECT_EQ(Resolve(Documented(whichever), two)->device, "");
  const VramConfig written = ToVramConfig(*Resolve(Documented("cuda:1"), two));
  EXPECT_EQ(written.computation_device, "cuda:1");
  EXPECT_EQ(written.offload_device, "cpu");
  VramConfig both = Documented("cuda:1");
  both.preparing_device = "cuda:0";
  EXPECT_THAT(Resolve(both, two),
              StatusIs(absl::StatusCode::kInvalidArgument, "vram_config.preparing_device: 'cuda:0' beside 'cuda:1'"));
  EXPECT_THAT(Resolve(Documented("cuda:2"), two),
              StatusIs(absl::StatusCode::kFailedPrecondition, "this server computes on cuda:0, cuda:1;"));
}

TEST(ProfileTest, RefusesADeviceThatIsNotHere) {
  for (const auto& [device, target, here] :
       {std::tuple("cuda", kCpu, "cpu"), std::tuple("cuda:0", kCpu, "cpu"), std::tuple("cuda:1", kCuda, "cuda:0")}) {
    VramConfig config = Least();
    config.preparing_device = device;
    EXPECT_THAT(Resolve(config, target),
                StatusIs(kPrecondition, std::string("vram_config.preparing_device: '") + device +
                                            "' is not here: this server computes on " + here +
                                            "; 'accelerator' is valid on every server"));
  }
}

TEST(ProfileTest, RefusesToComputeOnTheCpuOfACudaServer) {
  VramConfig config = Least();
  config.computation_device = "cpu";
  EXPECT_THAT(Resolve(config, kCuda),
              StatusIs(kPrecondition,
                       "vram_config.computation_device: 'cpu' is not here: this server computes on "
                       "cuda:0; 'accelerator' is valid on every server"));
}

TEST(ProfileTest, RefusesADtypeOnDisk) {
  VramConfig config = Least();
  config.offload_dtype = "bfloat16";
  config.offload_device = "disk";
  EXPECT_THAT(Resolve(config), StatusIs(kInvalid,
                                        "vram_config.offload_dtype: 'bfloat16' on disk: the checkpoint there "
                                        "is used as it is stored; valid: disk, or another offload_device"));
}

TEST(ProfileTest, RefusesDiskInMemory) {
  VramConfig config = Least();
  config.onload_dtype = "disk";
  config.onload_device = "cpu";
  EXPECT_THAT(Resolve(config), StatusIs(kInvalid,
                                        "vram_config.onload_device: 'cpu' can't hold what onload_dtype "
                                        "leaves on 'disk'; valid: disk, or another onload_dtype"));
}

TEST(ProfileTest, RefusesTiersThatGoDown) {
  VramConfig config = Least();
  config.offload_device = "accelerator";
  config.onload_device = "cpu";
  EXPECT_THAT(Resolve(config),
              StatusIs(kInvalid,
                       "vram_config.onload_device: 'cpu' is slower than offload_device 'accelerator'; weights "
                       "only move up: valid is the same tier or a faster one"));
  config = Documented("cuda");
  config.preparing_dtype = config.preparing_device = "disk";
  EXPECT_THAT(Resolve(config, kCuda),
              StatusIs(kInvalid, "vram_config.preparing_device: 'disk' is slower than onload_device 'cpu'; "));
}

TEST(ProfileTest, NamesTheResolvedDeviceWhereNoneWasWritten) {
  VramConfig config = Least();
  config.onload_dtype = "disk";  // Offload falls back to the device.
  EXPECT_THAT(Resolve(config), StatusIs(kInvalid, "onload_device: 'disk' is slower than offload_device 'accelerator'"));
}

TEST(ProfileTest, RefusesAWrongModuleMap) {
  for (const auto& [map, what] : std::vector<std::pair<std::map<std::string, std::string>, std::string>>{
           {{{"torch.nn.Conv2d", "AutoWrappedModule"}},
            "unknown module type 'torch.nn.Conv2d'; valid: Linear, RMSNorm"},
           {{{"torch.nn.", "AutoWrappedModule"}}, "unknown module type 'torch.nn.'; valid: Linear, RMSNorm"},
           {{{"Linear", "AutoWrappedLinear"}, {"torch.nn.Linear", "AutoWrappedLinear"}},
            "names the module type 'Linear' twice"},
           {{{"Linear", "Wrapped"}},
            "unknown wrapper 'Wrapped'; valid: AutoWrappedLinear, AutoWrappedModule, AutoWrappedNonRecurseModule"},
           {{{"a.RMSNorm", "AutoWrappedLinear"}}, "AutoWrappedLinear wraps Linear, not 'a.RMSNorm'"}}) {
    VramConfig config = Least();
    config.module_map = map;
    EXPECT_THAT(Resolve(config), StatusIs(kInvalid, "vram_config.module_map: " + what));
  }
}

TEST(ProfileTest, ShowsUsersTextShortAndPrintable) {
  VramConfig config = Least();
  config.onload_device = "\n\x1b" + std::string(1000, 'x');
  const absl::Status status = Resolve(config).status();
  EXPECT_THAT(status, StatusIs(kInvalid, "unknown device '\\n\\x1b" + std::string(62, 'x') + "'; valid"));
  EXPECT_LT(status.message().size(), 200);
}

TEST(ProfileTest, BeginsErrorsWithTheFieldOfTheCaller) {
  const absl::Status status = ResolveProfile("disk", VramConfig(), std::nullopt, kCpu, "profiles.disk").status();
  EXPECT_THAT(status.message().substr(0, 33), "profiles.disk.computation_dtype: ");
}

TEST(ProfileTest, KeepsTheName) {
  EXPECT_EQ(ResolveProfile("mine", Least(), std::nullopt, kCpu, "vram_config")->name, "mine");
}

void ExpectSame(const Profile& a, const Profile& b) {
  EXPECT_EQ(a.offload, b.offload);
  EXPECT_EQ(a.onload, b.onload);
  EXPECT_EQ(a.preparing, b.preparing);
  EXPECT_EQ(a.computation, b.computation);
  EXPECT_EQ(a.managed_types, b.managed_types);
}

TEST(ProfileTest, ReadsBackWhatItWrites) {
  VramConfig fp8 = Documented("accelerator");
  fp8.offload_dtype = fp8.onload_dtype = "float8_e4m3fn";
  VramConfig disk = Least();
  disk.offload_dtype = disk.onload_dtype = "disk";
  disk.module_map = {{"torch.nn.Linear", "AutoWrappedLinear"}};
  for (const VramConfig& config : {Least(), Documented("accelerator"), Documented("cpu"), fp8, disk}) {
    const absl::StatusOr<Profile> profile = Resolve(config);
    ASSERT_THAT(profile, IsOk());
    const absl::StatusOr<Profile> again = Resolve(ToVramConfig(*profile));
    ASSERT_THAT(again, IsOk());
    ExpectSame(*profile, *again);
  }
}

TEST(ProfileTest, WritesAllEightKeysForAnyServer) {
  VramConfig disk = Documented("cuda:0");
  disk.offload_dtype = disk.offload_device = "disk";
  const VramConfig written = ToVramConfig(*Resolve(disk, kCuda));
  EXPECT_EQ(written.offload_dtype, "disk");
  EXPECT_EQ(written.offload_device, "disk");
  EXPECT_EQ(written.onload_dtype, "bfloat16");
  EXPECT_EQ(written.onload_device, "cpu");
  EXPECT_EQ(written.preparing_dtype, "bfloat16");
  EXPECT_EQ(written.preparing_device, "accelerator");
  EXPECT_EQ(written.computation_dtype, "bfloat16");
  EXPECT_EQ(written.computation_device, "accelerator");
  EXPECT_THAT(written.module_map,
              ElementsAre(std::pair("Linear", "AutoWrappedLinear"), std::pair("RMSNorm", "AutoWrappedModule")));
}

TEST(ProfileTest, NamesTiers) {
  EXPECT_EQ(Name(Tier::kDisk), "disk");
  EXPECT_EQ(Name(Tier::kHost), "host");
  EXPECT_EQ(Name(Tier::kDevice), "device");
}

}  // namespace
}  // namespace ditserve
