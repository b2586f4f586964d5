// Every call by which the engine's passes are ordered on the device, left out alone, is missed.
#include "tests/cuda_double/engine_on_cuda.h"
#include "tests/cuda_double/mutants.h"
#include "tests/cuda_double/round_trip.h"

namespace ditserve {
namespace {

using CudaEngineMutantsTest = CudaEngineTest;

// Nothing that the host converts in a pass is still under way when that is asked: where the compiler makes a site of
// its own of that wait, cuda_mutants_test is where it is missed.
constexpr char kHostConversion[] = "cudaEventSynchronize in ditserve::(anonymous namespace)::CudaDevice::Enqueue()";

// Nothing is ordered by marks: CudaDeviceTest looks at them.
constexpr char kMarks[] = "cudaEventRecord in ditserve::(anonymous namespace)::CudaDevice::Mark()";

TEST_F(CudaEngineMutantsTest, EachCallThatOrdersAPassIsMissedWhereItIsLeftOut) {
  const auto ride = [this](uint32_t run, const void* site) {
    Begin(run, site);
    Ride(run, 1 + static_cast<int>(run % 4), nullptr, /*device_budget=*/int64_t{72} << 20);
    Burst(*MakeGpu());
    End();
  };
  const std::vector<std::string> missed = LeaveOutEach(/*runs=*/12, ride, {kHostConversion, kMarks});
  EXPECT_GE(missed.size(), 3u) << "more where the compiler has made functions of theirs part of others";
  for (const char* call : {"cudaEventRecord", "cudaStreamWaitEvent"}) {
    EXPECT_THAT(missed, ::testing::Contains(::testing::HasSubstr(call)));
  }
}

}  // namespace
}  // namespace ditserve
