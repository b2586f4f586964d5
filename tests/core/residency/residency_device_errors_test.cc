// What a ResidencyManager does with the errors of a device.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <utility>

#include "tests/testing/residency_fixture.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using Fixture = ResidencyFixture;
using Pass = ResidencyFixture::Pass;
constexpr int kModules = Fixture::kModules;

// Has passed, with an error.
class FailedEvent final : public Event {
 public:
  bool Done() override { return true; }
  absl::Status Wait() override { return absl::InternalError("the device was lost"); }
};

// Fails at its n-th of what it is told to fail at, once.
class FailingDevice final : public FakeDevice {
 public:
  enum class At : uint8_t { kNothing, kComputeAfter, kRecordOperations, kEvent };
  void FailAt(At at, int n) {
    at_ = at;
    in_ = n;
  }

  absl::StatusOr<EventPtr> Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) override {
    absl::StatusOr<EventPtr> event = FakeDevice::Enqueue(conversion, after);
    if (event.ok() && Fails(At::kEvent)) return std::make_shared<FailedEvent>();
    return event;
  }
  absl::Status ComputeAfter(const EventPtr&) override { return Fails(At::kComputeAfter) ? Lost() : absl::OkStatus(); }
  absl::StatusOr<EventPtr> RecordOperations() override {
    if (Fails(At::kRecordOperations)) return Lost();
    return nullptr;
  }

 private:
  static absl::Status Lost() { return absl::InternalError("the device was lost"); }
  bool Fails(At at) { return at_ == at && --in_ == 0; }

  std::atomic<At> at_ = At::kNothing;
  std::atomic<int> in_ = 0;
};

class ResidencyDeviceErrorsTest : public ::testing::Test {
 protected:
  ResidencyDeviceErrorsTest() : device_(new FailingDevice), fixture_(TakeDevice(), 4, kModules) {}

  void ExpectThatOthersGoOn() {
    device_->FailAt(FailingDevice::At::kNothing, 0);
    fixture_.Settle();
    EXPECT_THAT(Pass(fixture_, Fixture::Disk()).Wait(), IsOk());
    fixture_.CheckInvariants();
    EXPECT_EQ(fixture_.ledger.Usage(Memory::kDevice).activations_bytes, 0);
  }
  std::unique_ptr<FakeDevice> TakeDevice() { return std::unique_ptr<FakeDevice>(device_); }

  FailingDevice* const device_;  // The fixture's.
  Fixture fixture_;
};

TEST_F(ResidencyDeviceErrorsTest, WhoseOperationsFailEnds) {
  for (int n = 1; n < kModules; ++n) {
    device_->FailAt(FailingDevice::At::kRecordOperations, n);
    EXPECT_THAT(Pass(fixture_, Fixture::Disk(), {100}).Wait(),
                StatusIs(absl::StatusCode::kInternal, "the device was lost"));
    ExpectThatOthersGoOn();
  }
}

TEST_F(ResidencyDeviceErrorsTest, WhoCanNotWaitForItsCopyEnds) {
  device_->FailAt(FailingDevice::At::kComputeAfter, 1);
  EXPECT_THAT(Pass(fixture_, Fixture::Disk(), {100}).Wait(),
              StatusIs(absl::StatusCode::kInternal, "the device was lost"));
  ExpectThatOthersGoOn();
}

TEST_F(ResidencyDeviceErrorsTest, WhoMayHaveReadWhatWasNeverWrittenEnds) {
  device_->FailAt(FailingDevice::At::kEvent, 1);
  Pass pass(fixture_, Fixture::Disk(), {100}, [this](ModuleIndex module, Rider&) {
    while (module == 1 && fixture_.manager->Loading()) {
    }
  });
  EXPECT_THAT(pass.Wait(), StatusIs(absl::StatusCode::kInternal, "the device was lost"));
  fixture_.Settle();
  fixture_.CheckInvariants();
  EXPECT_EQ(fixture_.ledger.Usage(Memory::kDevice).activations_bytes, 0);
}

}  // namespace
}  // namespace ditserve
