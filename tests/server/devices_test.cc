#include "server/devices.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "core/devices/cpu_device.h"
#include "server/config/catalogue.h"
#include "server/config/config.h"
#include "tests/testing/forwarding_device.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kGiB = int64_t{1} << 30;

// A device with memory of its own, beside 40 GiB of the host's.
class Card final : public ForwardingDevice {
 public:
  Card(int index, int64_t total_bytes, absl::Status can_compute_float8 = absl::OkStatus())
      : ForwardingDevice(MakeCpuDevice(CpuBFloat16::kFloat32)),
        name_("cuda:" + std::to_string(index)),
        memory_(DeviceMemory(index)),
        total_bytes_(total_bytes),
        can_compute_float8_(std::move(can_compute_float8)) {}

  const std::string& name() const override { return name_; }
  Memory memory() const override { return memory_; }
  bool computes_in_host_memory() const override { return false; }
  absl::StatusOr<MemoryStatus> MemoryStatusOf(Memory memory) const override {
    return MemoryStatus{.total_bytes = IsHost(memory) ? 40 * kGiB : total_bytes_};
  }
  absl::Status CanCompute(DType computation) const override {
    return computation == DType::kFloat8E4M3 ? can_compute_float8_ : absl::OkStatus();
  }

 private:
  const std::string name_;
  const Memory memory_;
  const int64_t total_bytes_;
  const absl::Status can_compute_float8_;
};

template <typename... Cards>
Devices Of(Cards... cards) {
  Devices devices;
  (devices.push_back(std::move(cards)), ...);
  return devices;
}

ServerConfig Parse(const std::string& yaml) { return *ParseConfig(yaml, "c.yaml"); }

TEST(DevicesTest, ThereAreCpuAndCuda) {
  EXPECT_THAT(MakeDevice(ServerConfig(), "gpu", Memory::kDevice),
              StatusIs(absl::StatusCode::kInvalidArgument, "device gpu: expected cpu or cuda:N"));
  const absl::StatusOr<Devices> devices = MakeDevices(Parse("device: {name: cpu}"));
  ASSERT_THAT(devices, IsOk());
  ASSERT_EQ(devices->size(), 1u);
  EXPECT_EQ(devices->front()->name(), "cpu");
}

TEST(DevicesTest, AnAutomaticBudgetIsAllButAReserveWherePressureIsFollowed) {
  const ServerConfig config = Parse("memory: {device_budget: auto, host_budget: 25%}");
  const Devices devices = Of(std::make_unique<Card>(0, 100 * kGiB), std::make_unique<Card>(1, 50 * kGiB));
  const auto followed = Budgets(config, /*follow_pressure=*/true, devices);
  ASSERT_THAT(followed, IsOk());
  EXPECT_THAT(*followed, ElementsAre(10 * kGiB, 98 * kGiB, 49 * kGiB));
  const auto fixed = Budgets(config, /*follow_pressure=*/false, devices);
  ASSERT_THAT(fixed, IsOk());
  EXPECT_THAT(*fixed, ElementsAre(10 * kGiB, 60 * kGiB, 30 * kGiB));
}

TEST(DevicesTest, ABudgetThatIsGivenIsTaken) {
  const ServerConfig config = Parse("memory: {device_budget: 50%, host_budget: 1GiB}");
  const auto budgets = Budgets(config, /*follow_pressure=*/true, Of(std::make_unique<Card>(0, 100 * kGiB)));
  ASSERT_THAT(budgets, IsOk());
  EXPECT_THAT(*budgets, ElementsAre(kGiB, 50 * kGiB));
}

TEST(DevicesTest, EachBudgetIsToldByItsDevice) {
  EXPECT_EQ(BudgetsText({5, 6, 7}, Of(std::make_unique<Card>(0, 1), std::make_unique<Card>(1, 1))),
            "budgets of 5 bytes of host memory, 6 of cuda:0, 7 of cuda:1");
}

TEST(DevicesTest, TheDefaultProfileIsOneThatADeviceCanCompute) {
  const absl::Status old = absl::FailedPreconditionError("it is too old");
  const Devices one_is_old = Of(std::make_unique<Card>(0, 1, old), std::make_unique<Card>(1, 1));
  const auto catalogue = [](const std::string& computes_on) {
    return *MakeCatalogue(
        Parse("device: {name: ['cuda:0', 'cuda:1']}\ndefault_profile: mine\nprofiles: {mine: "
              "{computation_dtype: float8_e4m3fn, preparing_dtype: float8_e4m3fn" +
              computes_on + "}}"));
  };
  EXPECT_THAT(CheckDefaultProfile(catalogue(""), one_is_old), IsOk());
  EXPECT_THAT(CheckDefaultProfile(catalogue(", computation_device: 'cuda:1'"), one_is_old), IsOk());
  EXPECT_THAT(CheckDefaultProfile(catalogue(", computation_device: 'cuda:0'"), one_is_old),
              StatusIs(absl::StatusCode::kFailedPrecondition, "default_profile: profile: 'mine': it is too old"));
}

}  // namespace
}  // namespace ditserve
