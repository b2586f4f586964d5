// The double sees what it is there to see: each wait that a right program has is left out once, and is missed.
#include "tests/testing/device_double.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kPage = kHostPageBytes;
constexpr auto kNothing = [](const std::vector<const std::byte*>&) {};

// What a program that streams weights through one slot on the device waits for.
enum class Wait : uint8_t { kNone, kSlotOfHost, kReady, kFree };

// Streams pages through a slot of the host's and one of the device's, and sums up what operations find there.
class Streaming {
 public:
  Streaming(uint32_t seed, Wait left_out) : machine_(seed), left_out_(left_out) {
    for (const Memory memory : {Memory::kHost, Memory::kDevice}) {
      std::byte* const begin = *device_.ReserveAddresses(memory, kPage);
      EXPECT_THAT(device_.Commit(memory, begin, kPage), IsOk());
      (IsHost(memory) ? host_ : slot_) = begin;
    }
  }
  ~Streaming() {
    device_.Decommit(Memory::kDevice, slot_, kPage);
    device_.Decommit(Memory::kHost, host_, kPage);
    device_.ReleaseAddresses(Memory::kDevice, slot_, kPage);
    device_.ReleaseAddresses(Memory::kHost, host_, kPage);
  }

  void Stream(int pages) {
    for (int i = 1; i <= pages; ++i) {
      if (ready_ != nullptr && left_out_ != Wait::kSlotOfHost) {
        EXPECT_THAT(ready_->Wait(), IsOk());
      }
      machine_.HostWrites(host_, kPage, "the disk");
      std::memset(host_, i, kPage);
      const ElementSpan from = {Memory::kHost, host_, DType::kFloat8E4M3};
      const ElementSpan to = {Memory::kDevice, slot_, DType::kFloat8E4M3};
      ready_ = *device_.Enqueue({from, {}, to, kPage}, {left_out_ == Wait::kFree ? nullptr : free_});
      if (left_out_ != Wait::kReady) {
        EXPECT_THAT(device_.ComputeAfter(ready_), IsOk());
      }
      device_.Compute("operation", {{slot_, kPage}}, [this, i](const auto& found) {
        right_ +=
            std::all_of(found[0], found[0] + kPage, [i](std::byte byte) { return byte == std::byte{uint8_t(i)}; });
      });
      free_ = *device_.RecordOperations();
    }
    EXPECT_THAT(WaitForAll({free_, ready_}), IsOk());
    races_ = machine_.TakeRaces();
  }

  const std::vector<std::string>& found() const { return races_; }
  int right() const { return right_; }

 private:
  LateMachine machine_;
  DeviceDouble device_{&machine_};
  const Wait left_out_;
  std::byte* host_ = nullptr;
  std::byte* slot_ = nullptr;
  EventPtr ready_, free_;
  int right_ = 0;
  std::vector<std::string> races_;
};

constexpr int kPages = 8;
constexpr uint32_t kSeeds = 50;

TEST(DeviceDoubleTest, ARightProgramHasNoRacesAndRightValues) {
  for (uint32_t seed = 0; seed < kSeeds; ++seed) {
    Streaming streaming(seed, Wait::kNone);
    streaming.Stream(kPages);
    EXPECT_THAT(streaming.found(), IsEmpty()) << seed;
    EXPECT_EQ(streaming.right(), kPages) << seed;
  }
}

TEST(DeviceDoubleTest, AMissingWaitIsSeenInEverySchedule) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer sees it too, and ends the test";
#endif
  const std::vector<std::pair<Wait, std::vector<std::string>>> cases = {
      {Wait::kSlotOfHost, {"the write of 4096 bytes by the disk", "the read by fake:0's conversion"}},
      {Wait::kReady, {"the read of 4096 bytes by operation", "the write by fake:0's conversion"}},
      {Wait::kFree, {"the write of 4096 bytes by fake:0's conversion", "the read by operation"}},
  };
  for (const auto& [wait, places] : cases) {
    int wrong = 0;
    for (uint32_t seed = 0; seed < kSeeds; ++seed) {
      Streaming streaming(seed, wait);
      streaming.Stream(kPages);
      EXPECT_THAT(streaming.found(), Contains(AllOf(HasSubstr(places[0]), HasSubstr(places[1])))) << seed;
      wrong += streaming.right() < kPages;
    }
    EXPECT_GT(wrong, 0) << "values suffer too: " << places[0];
  }
}

TEST(DeviceDoubleTest, MemoryThatIsTakenWhileItIsReadIsSeen) {
  LateMachine machine(7);
  DeviceDouble device(&machine);
  std::byte* const data = *device.ReserveAddresses(Memory::kDevice, kPage);
  EXPECT_THAT(device.Commit(Memory::kDevice, data, kPage), IsOk());
  device.Compute("operation", {{data, kPage}}, kNothing);
  device.Decommit(Memory::kDevice, data, kPage);
  EXPECT_THAT(machine.TakeRaces(), ElementsAre("the write of 4096 bytes by Decommit is not ordered after the read by "
                                               "operation"));
  device.ReleaseAddresses(Memory::kDevice, data, kPage);
}

TEST(DeviceDoubleTest, WhatIsEnqueuedBehindAnEventOfAnotherDeviceIsOrdered) {
  for (const bool ordered : {true, false}) {
    LateMachine machine(7);
    DeviceDouble first(&machine), second(&machine, DeviceMemory(1));
    std::byte* const data = *first.ReserveAddresses(Memory::kHost, kPage);
    std::byte* const own = *second.ReserveAddresses(DeviceMemory(1), kPage);
    EXPECT_THAT(first.Commit(Memory::kHost, data, kPage), IsOk());
    EXPECT_THAT(second.Commit(DeviceMemory(1), own, kPage), IsOk());
    const ElementSpan host = {Memory::kHost, data, DType::kFloat8E4M3};
    const ElementSpan device = {DeviceMemory(1), own, DType::kFloat8E4M3};
    const EventPtr copied = *second.Enqueue({host, {}, device, kPage}, {});
    first.Compute("operation", {{data, kPage}}, kNothing);
    EXPECT_THAT(second.ComputeAfter(ordered ? copied : nullptr), IsOk());
    second.Compute("operation of the second", {{own, kPage}}, kNothing);
    const EventPtr computed = *second.RecordOperations();
    EXPECT_EQ(machine.TakeRaces().empty(), ordered);
    EXPECT_THAT(WaitForAll({copied, computed, *first.RecordOperations()}), IsOk());
    second.Decommit(DeviceMemory(1), own, kPage);
    first.Decommit(Memory::kHost, data, kPage);
    second.ReleaseAddresses(DeviceMemory(1), own, kPage);
    first.ReleaseAddresses(Memory::kHost, data, kPage);
    EXPECT_THAT(machine.TakeRaces(), IsEmpty());
  }
}

TEST(DeviceDoubleTest, NothingRunsBeforeItIsWaitedForAndAnEventThatIsAskedPassesInTheEnd) {
  LateMachine machine(7);
  DeviceDouble device(&machine);
  std::atomic<bool> ran = false;
  device.Compute("operation", {}, [&](const auto&) { ran = true; });
  const EventPtr event = *device.RecordOperations();
  EXPECT_FALSE(ran);
  while (!event->Done()) {
  }
  EXPECT_TRUE(ran);
}

TEST(DeviceDoubleTest, MemoryIsOverwrittenWhenItIsGivenAndUntilItIsWritten) {
  LateMachine machine(7);
  DeviceDouble device(&machine);
  std::byte* const data = *device.ReserveAddresses(Memory::kDevice, kPage);
  std::byte* const host = *device.ReserveAddresses(Memory::kHost, kPage);
  EXPECT_THAT(device.Commit(Memory::kDevice, data, kPage), IsOk());
  EXPECT_THAT(device.Commit(Memory::kHost, host, kPage), IsOk());
  std::memset(host, 3, kPage);
  EXPECT_EQ(data[0], std::byte{DeviceDouble::kPattern});
  const EventPtr ready = *device.Enqueue(
      {{Memory::kHost, host, DType::kFloat8E4M3}, {}, {Memory::kDevice, data, DType::kFloat8E4M3}, 16}, {});
  EXPECT_TRUE(machine.RunSome());
  EXPECT_EQ(data[0], std::byte{DeviceDouble::kPattern}) << "whoever reads now does not read what was there before";
  EXPECT_THAT(ready->Wait(), IsOk());
  EXPECT_EQ(data[0], std::byte{3});
  device.Decommit(Memory::kDevice, data, kPage);
  EXPECT_EQ(data[0], std::byte{DeviceDouble::kPattern});
  device.Decommit(Memory::kHost, host, kPage);
  device.ReleaseAddresses(Memory::kDevice, data, kPage);
  device.ReleaseAddresses(Memory::kHost, host, kPage);
}

TEST(DeviceDoubleDeathTest, ALeakADoubleFreeAndARaceThatNobodyTookEndTheProcess) {
  EXPECT_DEATH(
      {
        LateMachine machine(7);
        DeviceDouble device(&machine);
        device.ReserveAddresses(Memory::kDevice, kPage).IgnoreError();
      },
      "not given back");
  EXPECT_DEATH(
      {
        LateMachine machine(7);
        DeviceDouble device(&machine);
        std::byte* const data = *device.ReserveAddresses(Memory::kDevice, kPage);
        device.Commit(Memory::kDevice, data, kPage).IgnoreError();
        device.Decommit(Memory::kDevice, data, kPage);
        device.Decommit(Memory::kDevice, data, kPage);
      },
      "taken from addresses without it");
  EXPECT_DEATH(
      {
        LateMachine machine(7);
        DeviceDouble device(&machine);
        char byte = 0;
        device.Compute("operation", {{&byte, 1}}, kNothing);
        machine.HostWrites(&byte, 1, "the host");
      },
      "a race that no test expects: the write of 1 bytes by the host");
}

#if defined(__SANITIZE_THREAD__)
TEST(LateMachineDeathTest, ThreadSanitizerTakesStreamsForThreadsWhoeverDoesTheirWork) {
  EXPECT_DEATH(
      {
        LateMachine machine(7);
        int value = 0;
        machine.Enqueue(machine.AddStream(), "work", {}, {}, [&value] { value = 1; });
        machine.RunSome();
        std::exit(value);
      },
      "data race");
}
#endif

}  // namespace
}  // namespace ditserve
