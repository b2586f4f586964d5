#include "server/engine/device_report.h"

#include "server/engine/published_speeds.h"
#include "tests/server/engine/local_engine_fixture.h"

namespace ditserve {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

class DeviceReportTest : public LocalEngineTest {
 protected:
  DeviceReportOptions Options() const {
    DeviceReportOptions options;
    options.models = {{"tiny", folder_ / "model"}};
    options.profiles = profiles_;
    options.budgets = {int64_t{1} << 30, int64_t{1} << 30};
    options.taken = {16 << 20, 0};
    return options;
  }
  std::string Report(const DeviceReportOptions& options) {
    const absl::StatusOr<std::string> report = ReportDevice(*device_, options, clock_);
    EXPECT_THAT(report, IsOk());
    return report.value_or("");
  }
};

TEST_F(DeviceReportTest, AModelWhoseCheckpointIsThereIsTakenAsItIs) {
  EXPECT_THAT(Report(Options()), HasSubstr("tiny: 0.0 billion parameters, "));
  EXPECT_THAT(Report(Options()), Not(HasSubstr("as published")));
}

TEST_F(DeviceReportTest, WithoutAModelItIsQwenImageAsPublished) {
  DeviceReportOptions options = Options();
  options.models.clear();
  EXPECT_THAT(Report(options), HasSubstr("Qwen-Image: 20.4 billion parameters, 38.1 GiB (as published"));
}

TEST_F(DeviceReportTest, ABudgetThatIsTooSmallForAProfileIsToldWithWhy) {
  DeviceReportOptions options = Options();
  options.budgets[1] = 1 << 20;
  EXPECT_THAT(Report(options), HasSubstr("\nresident: the request takes "));
}

TEST_F(DeviceReportTest, WhatIsTakenAtStartIsNotThereForRequests) {
  DeviceReportOptions options = Options();
  options.taken[1] = int64_t{1} << 30;
  EXPECT_THAT(Report(options), HasSubstr("\nresident: the request takes "));
}

TEST_F(DeviceReportTest, AProfileOfAnotherDeviceOrOfAnArithmeticThatItLacksHasNoFigures) {
  DeviceReportOptions options = Options();
  options.profiles = {ProfileNamed("disk")};
  options.profiles[0].device = "cuda:7";
  EXPECT_THAT(Report(options), Not(HasSubstr("\ndisk ")));
  options.profiles[0].device.clear();
  options.profiles[0].computation.dtype = DType::kFloat8E4M3;
  device_->cannot = absl::FailedPreconditionError("has no float8");
  EXPECT_THAT(Report(options), HasSubstr("\ndisk: profile: 'disk': has no float8"));
}

TEST_F(DeviceReportTest, ADeviceWithAMemoryOfItsOwnHasItsCopiesMeasured) {
  EXPECT_THAT(Report(Options()), Not(HasSubstr("copies")));
  device_->apart = true;
  EXPECT_THAT(Report(Options()), HasSubstr("B/s from the host's memory, measured here and now"));
}

TEST_F(DeviceReportTest, TimesFollowFromWhatIsPublishedOfItsArchitectureOrAreUnknown) {
  device_->apart = true;
  DeviceReportOptions options = Options();
  options.profiles = {ProfileNamed("resident")};
  options.profiles[0].computation.dtype = DType::kBFloat16;
  for (const int capability : {75, 80, 86, 89, 90, 100, 120}) {
    options.cuda = CudaDescription{13000, 13000, {{"a GPU", capability, 100, int64_t{80} << 30}}};
    const bool published = PublishedSpeedOf(capability, 100).has_value();
    EXPECT_EQ(published, capability != 75);
    EXPECT_THAT(Report(options), HasSubstr(published ? "published, not measured here" : "times are unknown"));
  }
}

// Computes on the CPU, in what a GPU computes in, in a memory of its own.
class Gpu final : public ForwardingDevice {
 public:
  Gpu() : ForwardingDevice(MakeCpuDevice(CpuBFloat16::kNative)) {}
  bool computes_in_host_memory() const override { return false; }
};

TEST_F(DeviceReportTest, EachShippedProfileHasATimeWhereOneIsPublishedAndInFloat8ThatOfBFloat16AtMost) {
  Gpu gpu;
  DeviceReportOptions options = Options();
  options.cuda = CudaDescription{13000, 13000, {{"a GPU", 100, 148, int64_t{180} << 30}}};
  const absl::StatusOr<std::string> report = ReportDevice(gpu, options, clock_);
  ASSERT_THAT(report, IsOk());
  EXPECT_THAT(*report, HasSubstr(" TFLOP/s, published, not measured here: a B200 of 148 multiprocessors"));
  for (const Profile& profile : profiles_) {
    const bool float8 = profile.computation.dtype == DType::kFloat8E4M3;
    EXPECT_THAT(*report, ContainsRegex("\n" + profile.name + " [^\n]*B +" + (float8 ? "at most " : "") + "[0-9.]+ s"));
  }
}

TEST(PublishedSpeedTest, GrowsWithMultiprocessors) {
  EXPECT_EQ(PublishedSpeedOf(90, 132)->flops_per_second, 544e12);
  EXPECT_EQ(PublishedSpeedOf(90, 66)->flops_per_second, 272e12);
}

}  // namespace
}  // namespace ditserve
