#include "server/make_engine.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "core/devices/cpu_device.h"
#include "server/config/config.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

constexpr int64_t kMiB = 1 << 20;

class MakeEngineTest : public ::testing::Test {
 protected:
  MakeEngineTest() { devices_.push_back(MakeCpuDevice(CpuBFloat16::kFloat32)); }

  absl::StatusOr<std::unique_ptr<LocalEngine>> Make(const std::string& yaml, int64_t device_budget) {
    return MakeEngine(*ParseConfig(yaml, "c.yaml"), {256 * kMiB, device_budget}, devices_, &clock_, nullptr);
  }

  // What a device of this budget keeps modulation in.
  int64_t Modulation(const std::string& yaml, int64_t device_budget) {
    const auto engine = Make(yaml, device_budget);
    EXPECT_THAT(engine.status(), IsOk());
    return engine.ok() ? (*engine)->Residency().devices[0].memory.usage.modulation_bytes : -1;
  }

  const SteadyClock clock_;
  Devices devices_;
};

TEST_F(MakeEngineTest, AnEighthOfABudgetKeepsModulationAndNoMoreThanAScheduleOf50StepsNeeds) {
  EXPECT_EQ(Modulation("", 64 * kMiB), 8 * kMiB);
  EXPECT_EQ(Modulation("memory: {modulation: auto}", 1024 * kMiB), 128 * kMiB);
  constexpr int64_t kRow = (60 * 2 * 6 + 2) * 3072 * 2;  // Of the 20 B model in bfloat16.
  EXPECT_GE(Modulation("", 1800 * 1000 * 1000), 50 * kRow);
  EXPECT_EQ(Modulation("", int64_t{20} << 30), 448 * kMiB);
  EXPECT_GE(448 * kMiB, 50 * 2 * kRow) << "in float32";
}

TEST_F(MakeEngineTest, WhatTheConfigurationSaysIsTakenAsItIs) {
  EXPECT_EQ(Modulation("memory: {modulation: 40MiB}", 64 * kMiB), 40 * kMiB);
  EXPECT_EQ(Modulation("memory: {modulation: 512MiB}", int64_t{20} << 30), 512 * kMiB);
  EXPECT_EQ(Modulation("memory: {modulation: 0}", 64 * kMiB), 0);
  EXPECT_THAT(Make("memory: {modulation: 65MiB}", 64 * kMiB).status(),
              StatusIs(absl::StatusCode::kResourceExhausted, "to keep modulation takes 68157440"));
}

}  // namespace
}  // namespace ditserve
