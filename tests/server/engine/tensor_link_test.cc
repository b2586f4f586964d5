#include "server/engine/tensor_link.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "tests/testing/device_double.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

// A link to a device that works late. Tensors "on the device" lie in its memory, where LibTorch takes them for the
// CPU's.
class TensorLinkTest : public ::testing::Test {
 protected:
  static constexpr int64_t kBudget = 64 << 20;

  TensorLinkTest() { MakeLink(); }
  ~TensorLinkTest() override {
    if (link_ != nullptr) link_->Settle();
    executor_.reset();
    link_.reset();
    EXPECT_EQ(ledger_.Usage(Memory::kHost).staging_bytes, 0);
  }

  void MakeLink() {
    auto made = TensorLink::Make(&device_, host_.get(), &ledger_, executor_.get());
    ASSERT_THAT(made, IsOk());
    link_ = *std::move(made);
  }

  at::Tensor OnDevice(at::IntArrayRef sizes, at::ScalarType dtype) {
    int64_t bytes = static_cast<int64_t>(c10::elementSize(dtype));
    for (const int64_t size : sizes) bytes *= size;
    parts_.push_back(of_device_->Take(bytes));
    EXPECT_THAT(parts_.back().Prepare(), IsOk());
    return at::from_blob(parts_.back().data(), sizes, at::TensorOptions(dtype));
  }

  void OnExecutor(absl::AnyInvocable<void() &&> work) {
    absl::Notification done;
    executor_->Post([&] {
      std::move(work)();
      done.Notify();
    });
    done.WaitForNotification();
  }

  // There and back again; `operation`, in between, sees the device's.
  at::Tensor RoundTrip(const at::Tensor& host, at::ScalarType dtype) {
    const at::Tensor there = OnDevice(host.sizes(), dtype), back = at::empty(host.sizes(), host.options());
    absl::Notification arrived;
    OnExecutor([&] {
      link_->ToDevice(host, there, [&](const absl::Status& status) {
        EXPECT_THAT(status, IsOk());
        link_->ToHost(there, back, [&](const absl::Status& status) {
          EXPECT_THAT(status, IsOk());
          arrived.Notify();
        });
      });
    });
    arrived.WaitForNotification();
    return back;
  }

  LateMachine machine_{3};
  DeviceDouble device_{&machine_};
  Ledger ledger_{{kBudget, kBudget}};
  std::unique_ptr<Arena> host_ = *Arena::Make(&device_, Memory::kHost, int64_t{1} << 30);
  std::unique_ptr<Arena> of_device_ = *Arena::Make(&device_, Memory::kDevice, int64_t{1} << 30);
  std::vector<Buffer> parts_;
  std::unique_ptr<Executor> executor_ = std::make_unique<Executor>([] {});
  std::unique_ptr<TensorLink> link_;
};

TEST_F(TensorLinkTest, TakesTensorsThereAndBack) {
  // More than the slots together, and a piece that is not whole.
  const at::Tensor large = at::arange(3 * TensorLink::kSlots * TensorLink::kSlotBytes / 8 + 5, at::kFloat);
  EXPECT_TRUE(at::equal(RoundTrip(large, at::kFloat), large));
  const at::Tensor small = at::arange(7, at::kFloat);
  EXPECT_TRUE(at::equal(RoundTrip(small, at::kFloat), small));
  EXPECT_TRUE(at::equal(RoundTrip(at::empty({0, 4}), at::kFloat), at::empty({0, 4})));
}

TEST_F(TensorLinkTest, RoundsToTheTargetsDtype) {
  const at::Tensor fine = at::arange(1000, at::kFloat).div_(7);
  EXPECT_TRUE(at::equal(RoundTrip(fine, at::kBFloat16), fine.to(at::kBFloat16).to(at::kFloat)));
}

TEST_F(TensorLinkTest, TakesComplexTensors) {
  const at::Tensor pairs = at::arange(6, at::kFloat).to(at::kComplexFloat);
  EXPECT_TRUE(at::equal(RoundTrip(pairs, at::kComplexFloat), pairs));
}

TEST_F(TensorLinkTest, NobodyWaitsForTheDevice) {
  const at::Tensor host = at::arange(2 * TensorLink::kSlots * TensorLink::kSlotBytes / 4, at::kFloat);
  const at::Tensor there = OnDevice(host.sizes(), at::kFloat), back = at::empty(host.sizes(), host.options());
  absl::Notification issued, arrived;
  OnExecutor([&] {
    link_->ToDevice(host, there, [&](const absl::Status& status) {
      EXPECT_THAT(status, IsOk());
      issued.Notify();
    });
    link_->ToHost(there, back, [&](const absl::Status& status) {
      EXPECT_THAT(status, IsOk());
      arrived.Notify();
    });
    // Half of the pieces find no slot free until the device is done with others; the executor goes on all the same.
    EXPECT_FALSE(issued.HasBeenNotified());
    EXPECT_FALSE(arrived.HasBeenNotified());
  });
  issued.WaitForNotification();
  arrived.WaitForNotification();
  EXPECT_TRUE(at::equal(back, host));
}

TEST_F(TensorLinkTest, WhatIsReadOnTheDeviceComesAfterWhatIsWrittenThere) {
  const at::Tensor host = at::full({1000}, 5, at::kFloat), there = OnDevice({1000}, at::kFloat);
  at::Tensor back = at::empty({1000});
  absl::Notification arrived;
  OnExecutor([&] {
    link_->ToDevice(host, there, [](const absl::Status&) {});
    device_.Compute("an operation", {{there.data_ptr(), 4000}}, [there](const auto&) { there.mul(1).add_(0); });
    link_->ToHost(there, back, [&](const absl::Status&) { arrived.Notify(); });
    EXPECT_FALSE(arrived.HasBeenNotified());
  });
  arrived.WaitForNotification();
  EXPECT_TRUE(at::equal(back, host));
}

TEST_F(TensorLinkTest, WhatIsOnTheDeviceIsNotHeldUntilThatIsNoted) {
  OnExecutor([&] {
    const at::Tensor host = at::arange(100, at::kFloat), there = OnDevice({100}, at::kFloat);
    bool done = false;
    link_->ToDevice(host, there, [&](const absl::Status&) { done = true; });
    EXPECT_TRUE(done);
    EXPECT_EQ(host.use_count(), 1U);
    EXPECT_EQ(there.use_count(), 1U);
  });
}

TEST_F(TensorLinkTest, AFailedOperationIsToldOnceAndOthersGoOn) {
  const at::Tensor host = at::arange(3 * TensorLink::kSlotBytes / 4, at::kFloat),
                   there = OnDevice(host.sizes(), at::kFloat);
  std::vector<absl::Status> told;
  OnExecutor([&] {
    device_.FailCopy(2);  // The second piece.
    link_->ToDevice(host, there, [&](absl::Status status) { told.push_back(std::move(status)); });
  });
  EXPECT_TRUE(at::equal(RoundTrip(host, at::kFloat), host));
  ASSERT_EQ(told.size(), 1U);
  EXPECT_THAT(told[0], StatusIs(absl::StatusCode::kUnavailable, "link failed"));
}

TEST_F(TensorLinkTest, AHostBudgetThatIsTooSmallForTheSlotsIsRefused) {
  Ledger small({TensorLink::kSlots * TensorLink::kSlotBytes - 1, kBudget});
  EXPECT_THAT(TensorLink::Make(&device_, host_.get(), &small, executor_.get()).status(),
              StatusIs(absl::StatusCode::kResourceExhausted, "inputs and outputs"));
}

}  // namespace
}  // namespace ditserve
