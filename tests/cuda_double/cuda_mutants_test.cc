// Every call by which the CUDA device orders or waits, left out alone, is missed: something races, or a value is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/cuda_double/cuda_double.h"
#include "tests/cuda_double/mutants.h"
#include "tests/cuda_double/round_trip.h"
#include "tests/testing/random_trace.h"
#include "tests/testing/suite_devices.h"

namespace ditserve {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

constexpr int kSeeds = 20;  // Of each kind of run.

// Riders on one device or two.
void RideAll(uint32_t seed, const void* site) {
  LateDevices late(seed);
  cuda_double::DropSite(site);
  RandomTrace(seed, late, 1 + static_cast<int>(seed % 2)).Run();
}

// There and back on one device, on which the event of one step can't be recorded.
void MoveOnce(uint32_t seed, const void* site) {
  cuda_double::Options options;
  options.seed = seed;
  cuda_double::Begin(options);
  cuda_double::DropSite(site);
  cuda_double::Machine().SetDurations([](const std::string& place) {
    return place == "cudaMemcpyAsync" ? absl::Milliseconds(1) : absl::ZeroDuration();
  });
  const uint32_t failing = seed % 8;
  if (failing > 0) cuda_double::FailCall("cudaEventRecord", failing, cudaErrorInvalidValue);
  {
    const std::unique_ptr<Device> device = MakeCuda();
    RoundTrip trip(*device);
    EXPECT_EQ(trip.Run().ok(), failing == 0);
    EXPECT_TRUE(trip.right() || failing > 0) << "a wrong value";
    EXPECT_TRUE(device->CopySpeed() || failing > 0) << "the speed of its link is not known";
    Burst(*device);
  }
  for (const std::string& race : cuda_double::Machine().TakeRaces()) ADD_FAILURE() << race;
}

TEST(CudaMutantsTest, EachCallThatOrdersIsMissedWhereItIsLeftOut) {
  const std::vector<std::string> missed = LeaveOutEach(
      2 * kSeeds, [](uint32_t run, const void* site) { (run % 2 == 0 ? RideAll : MoveOnce)(run / 2, site); });
  EXPECT_GE(missed.size(), 4u) << "more where the compiler has made functions of theirs part of others";
  for (const char* call : {"cudaEventRecord", "cudaStreamWaitEvent", "Synchronize"}) {
    EXPECT_THAT(missed, Contains(HasSubstr(call)));
  }
}

}  // namespace
}  // namespace ditserve
