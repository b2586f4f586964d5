// Every call by which the CUDA device orders or waits, left out alone, is missed: something races, or a value is wrong.
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "tests/cuda_double/cuda_double.h"
#include "tests/cuda_double/round_trip.h"
#include "tests/testing/random_trace.h"
#include "tests/testing/suite_devices.h"

namespace ditserve {
namespace {

constexpr int kSeeds = 20;  // Of each kind of run.

struct Found {
  int runs = 0, races = 0, values = 0;
  std::string first;  // What was told first.
  void Add(const std::string& message) { first = first.empty() ? message.substr(0, message.find('\n', 1)) : first; }
};

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
  const uint32_t failing = seed % 4;
  if (failing > 0) cuda_double::FailCall("cudaEventRecord", failing, cudaErrorInvalidValue);
  {
    const std::unique_ptr<Device> device = MakeCuda();
    RoundTrip trip(*device);
    EXPECT_EQ(trip.Run().ok(), failing == 0);
    EXPECT_TRUE(trip.right() || failing > 0) << "a wrong value";
  }
  for (const std::string& race : cuda_double::Machine().TakeRaces()) ADD_FAILURE() << race;
}

// What is found where calls from the site are left out; null: none are.
Found Without(const void* site) {
  Found found;
  for (uint32_t seed = 0; seed < 2 * kSeeds; ++seed) {
    ::testing::TestPartResultArray failures;
    {
      const ::testing::ScopedFakeTestPartResultReporter reporter(
          ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ALL_THREADS, &failures);
      (seed % 2 == 0 ? RideAll : MoveOnce)(seed / 2, site);
      cuda_double::DropSite(nullptr);
    }
    bool raced = false, wrong = false;
    for (int i = 0; i < failures.size(); ++i) {
      const std::string message = failures.GetTestPartResult(i).message();
      raced |= absl::StrContains(message, "is not ordered after");
      wrong |= absl::StrContains(message, "memcmp") || absl::StrContains(message, "a wrong value");
      found.Add(message);
    }
    ++found.runs, found.races += raced, found.values += wrong;
  }
  return found;
}

TEST(CudaMutantsTest, EachCallThatOrdersIsMissedWhereItIsLeftOut) {
  EXPECT_EQ(Without(nullptr).first, "") << "with all of them";
  int sites = 0;
  for (const cuda_double::Site& site : cuda_double::Sites()) {
    if (!absl::StrContains(site.name, "ditserve::")) continue;  // LibTorch's.
    const Found found = Without(site.address);
    std::printf("| %s | %d | %d | %d |\n", site.name.c_str(), found.runs, found.races, found.values);
    EXPECT_GT(found.races + found.values, 0) << site.name << ", " << found.first;
    ++sites;
  }
  EXPECT_GE(sites, 4) << "more where the compiler has made functions of theirs part of others";
}

}  // namespace
}  // namespace ditserve
