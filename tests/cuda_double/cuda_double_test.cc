// The double is as hard as CUDA is allowed to be: each of its rules, and what breaks it is seen.
#include "tests/cuda_double/cuda_double.h"

#include <cuda.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace ditserve::cuda_double {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kBytes = 1000;

class CudaDoubleTest : public ::testing::Test {
 protected:
  CudaDoubleTest() {
    Begin({});
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
    EXPECT_EQ(cudaMalloc(&data_, kBytes), cudaSuccess);
    EXPECT_EQ(cudaHostAlloc(&pinned_, kBytes, cudaHostAllocDefault), cudaSuccess);
  }
  ~CudaDoubleTest() override {
    Machine().TakeRaces();
    Begin({});
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  }

  // An operation on a stream that reads or writes `data`.
  static cudaError_t Touch(const char* name, cudaStream_t stream, void* data, bool writes) {
    return LaunchWork(name, {{{data, kBytes, writes}}, nullptr}, stream);
  }
  cudaError_t Write(cudaStream_t stream) { return Touch("a write", stream, data_, true); }
  cudaError_t Read(cudaStream_t stream) { return Touch("a read", stream, data_, false); }
  // Whether a write on the first stream is before a read on the second.
  bool IsOrdered(cudaStream_t first, cudaStream_t second) {
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    Machine().TakeRaces();
    EXPECT_EQ(Write(first), cudaSuccess);
    EXPECT_EQ(Read(second), cudaSuccess);
    const std::vector<std::string> races = Machine().TakeRaces();
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return races.empty();
  }
  static cudaStream_t MakeStream(unsigned flags) {
    cudaStream_t stream = nullptr;
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream, flags), cudaSuccess);
    return stream;
  }
  static cudaEvent_t MakeEvent() {
    cudaEvent_t event = nullptr;
    EXPECT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
    return event;
  }
  std::vector<char> Contents(size_t bytes = kBytes) {
    std::vector<char> contents(bytes);
    EXPECT_EQ(cudaMemcpy(contents.data(), data_, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    return contents;
  }

  void* data_ = nullptr;
  void* pinned_ = nullptr;
};

TEST_F(CudaDoubleTest, TheLegacyStreamAndBlockingStreamsWaitForEachOther) {
  const cudaStream_t blocking = MakeStream(cudaStreamDefault), other = MakeStream(cudaStreamDefault);
  EXPECT_TRUE(IsOrdered(cudaStreamLegacy, blocking));
  EXPECT_TRUE(IsOrdered(blocking, nullptr));
  EXPECT_TRUE(IsOrdered(cudaStreamPerThread, cudaStreamLegacy));
  EXPECT_FALSE(IsOrdered(blocking, other));
  EXPECT_FALSE(IsOrdered(cudaStreamPerThread, blocking));
}

TEST_F(CudaDoubleTest, NonBlockingStreamsWaitForNobody) {
  const cudaStream_t stream = MakeStream(cudaStreamNonBlocking), other = MakeStream(cudaStreamNonBlocking);
  EXPECT_FALSE(IsOrdered(cudaStreamLegacy, stream));
  EXPECT_FALSE(IsOrdered(stream, cudaStreamLegacy));
  EXPECT_FALSE(IsOrdered(stream, other));
  EXPECT_TRUE(IsOrdered(stream, stream));
}

TEST_F(CudaDoubleTest, EachThreadAndEachDeviceHasADefaultStreamOfItsOwn) {
  ASSERT_EQ(Write(cudaStreamPerThread), cudaSuccess);
  std::thread([&] { EXPECT_EQ(Read(cudaStreamPerThread), cudaSuccess); }).join();
  EXPECT_THAT(Machine().TakeRaces(), ElementsAre(AllOf(HasSubstr("the read of 1000 bytes by a read"),
                                                       HasSubstr("is not ordered after the write by a write"))));
  ASSERT_EQ(cudaDeviceEnablePeerAccess(1, 0), cudaSuccess);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  ASSERT_EQ(cudaDeviceEnablePeerAccess(0, 0), cudaSuccess);
  EXPECT_EQ(Write(cudaStreamLegacy), cudaSuccess);
  EXPECT_THAT(Machine().TakeRaces(), Contains(HasSubstr("is not ordered after")));
}

TEST_F(CudaDoubleTest, AWaitIsForTheRecordOfThatMoment) {
  const cudaStream_t first = MakeStream(cudaStreamNonBlocking), second = MakeStream(cudaStreamNonBlocking);
  const cudaEvent_t event = MakeEvent();
  EXPECT_EQ(Write(first), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(event, first), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(second, event, 0), cudaSuccess);
  EXPECT_EQ(Touch("the next write", first, pinned_, true), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(event, first), cudaSuccess);
  EXPECT_EQ(Read(second), cudaSuccess);
  EXPECT_THAT(Machine().TakeRaces(), IsEmpty());
  EXPECT_EQ(Touch("a read", second, pinned_, false), cudaSuccess);
  EXPECT_THAT(Machine().TakeRaces(), Contains(HasSubstr("after the write by the next write")));
}

TEST_F(CudaDoubleTest, AnEventThatIsNotRecordedHasPassedAndOrdersNothing) {
  const cudaStream_t first = MakeStream(cudaStreamNonBlocking), second = MakeStream(cudaStreamNonBlocking);
  const cudaEvent_t event = MakeEvent();
  EXPECT_EQ(Write(first), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(second, event, 0), cudaSuccess);
  EXPECT_EQ(Read(second), cudaSuccess);
  EXPECT_THAT(Machine().TakeRaces(), Contains(HasSubstr("is not ordered after")));
}

TEST_F(CudaDoubleTest, WhatTheLegacyStreamWaitsForBlockingStreamsWaitForToo) {
  const cudaStream_t first = MakeStream(cudaStreamNonBlocking), blocking = MakeStream(cudaStreamDefault);
  const cudaEvent_t event = MakeEvent();
  EXPECT_EQ(Write(first), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(event, first), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(cudaStreamLegacy, event, 0), cudaSuccess);
  EXPECT_EQ(Read(blocking), cudaSuccess);
  EXPECT_THAT(Machine().TakeRaces(), IsEmpty());
}

TEST_F(CudaDoubleTest, NothingIsDoneBeforeSomebodyAsksAndThenInTheEndItIs) {
  std::atomic<bool> done = false;
  const cudaStream_t stream = MakeStream(cudaStreamNonBlocking);
  const cudaEvent_t event = MakeEvent();
  EXPECT_EQ(LaunchWork("work", {{}, [&](const auto&) { done = true; }}, stream), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  EXPECT_FALSE(done);
  EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
  EXPECT_EQ(cudaGetLastError(), cudaErrorNotReady);
  while (cudaStreamQuery(stream) == cudaErrorNotReady) {
  }
  EXPECT_TRUE(done);
  EXPECT_EQ(HostSynchronizations(), 0);
  EXPECT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_EQ(HostSynchronizations(), 1);
}

TEST_F(CudaDoubleTest, EventsTellHowLongOperationsTakeWheneverTheyAreDone) {
  const cudaStream_t first = MakeStream(cudaStreamNonBlocking), second = MakeStream(cudaStreamNonBlocking);
  cudaEvent_t begin = nullptr, between = nullptr, end = nullptr, never = nullptr;
  for (cudaEvent_t* const event : {&begin, &between, &end, &never}) EXPECT_EQ(cudaEventCreate(event), cudaSuccess);
  const cudaEvent_t untimed = MakeEvent();
  Machine().SetDurations([](const std::string& place) {
    return absl::Milliseconds(place == "a write" ? 3 : place == "a read" ? 5 : 0);
  });
  EXPECT_EQ(cudaEventRecord(begin, first), cudaSuccess);
  EXPECT_EQ(Write(first), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(between, first), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(second, between, 0), cudaSuccess);
  EXPECT_EQ(Read(second), cudaSuccess);
  Machine().KeepHostBusy(absl::Milliseconds(20));
  EXPECT_EQ(Read(second), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(end, second), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(untimed, second), cudaSuccess);
  float milliseconds = 0;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, begin, end), cudaErrorNotReady);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, begin, between), cudaSuccess);
  EXPECT_EQ(milliseconds, 3);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, begin, end), cudaSuccess);
  EXPECT_EQ(milliseconds, 25);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, begin, untimed), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, begin, never), cudaErrorInvalidResourceHandle);
}

TEST_F(CudaDoubleTest, CopiesOfPinnedMemoryAreLateAndTheHostMustWait) {
  std::memset(pinned_, 7, kBytes);
  EXPECT_EQ(cudaMemcpyAsync(data_, pinned_, kBytes, cudaMemcpyDefault, nullptr), cudaSuccess);
  Machine().HostWrites(pinned_, 1, "the host");
  EXPECT_THAT(Machine().TakeRaces(), ElementsAre("the write of 1 bytes by the host is not ordered after the read by "
                                                 "cudaMemcpyAsync"));
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  Machine().HostWrites(pinned_, 1, "the host");
  EXPECT_THAT(Machine().TakeRaces(), IsEmpty());
  EXPECT_THAT(Contents(), Each(7));
}

TEST_F(CudaDoubleTest, PageableMemoryMayBeReadAndWrittenAfterTheCallReturned) {
  std::vector<char> pageable(kBytes, 3);
  for (const bool to_device : {true, false}) {
    void *const to = to_device ? data_ : pageable.data(), *const from = to_device ? pageable.data() : data_;
    for (const bool waits : {false, true}) {
      EXPECT_EQ(cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDefault, nullptr), cudaSuccess);
      if (waits) {
        EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
      }
      Machine().HostWrites(pageable.data(), kBytes, "the host");
      EXPECT_EQ(Machine().TakeRaces().empty(), waits) << to_device;
      EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
    }
  }
  EXPECT_THAT(pageable, Each(3));
}

TEST_F(CudaDoubleTest, OnlyCopiesBetweenDevicesLeaveASynchronousCopyUnfinished) {
  void* other = nullptr;
  EXPECT_EQ(cudaMalloc(&other, kBytes), cudaSuccess);
  const cudaStream_t stream = MakeStream(cudaStreamNonBlocking);
  EXPECT_EQ(cudaMemcpy(data_, pinned_, kBytes, cudaMemcpyDefault), cudaSuccess);
  EXPECT_EQ(Read(stream), cudaSuccess);
  EXPECT_THAT(Machine().TakeRaces(), IsEmpty());
  EXPECT_EQ(cudaMemcpy(other, data_, kBytes, cudaMemcpyDefault), cudaSuccess);
  EXPECT_EQ(Touch("a read", stream, other, false), cudaSuccess);
  EXPECT_THAT(Machine().TakeRaces(), Contains(HasSubstr("after the write by cudaMemcpy")));
}

using CudaDoubleDeathTest = CudaDoubleTest;
TEST_F(CudaDoubleDeathTest, TheHostCanNotTouchDeviceMemory) {
  EXPECT_DEATH(*static_cast<volatile char*>(data_) = 1, "");
  EXPECT_DEATH(static_cast<void>(*static_cast<volatile char*>(data_)), "");
}

TEST_F(CudaDoubleTest, MemoryIsGivenFullOfPoisonAndKeepsWhatIsWritten) {
  EXPECT_THAT(Contents(), Each(static_cast<char>(kPoison)));
  EXPECT_EQ(cudaMemset(data_, 1, kBytes), cudaSuccess);
  EXPECT_THAT(Contents(), Each(1));
  void* const before = data_;
  EXPECT_EQ(cudaFree(data_), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&data_, kBytes), cudaSuccess);
  EXPECT_EQ(data_, before);
  EXPECT_THAT(Contents(), Each(static_cast<char>(kPoison)));
}

TEST_F(CudaDoubleTest, WhoComesTooLateFindsNothingOfWhatWasFreed) {
  EXPECT_EQ(cudaMemset(data_, 1, kBytes), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(pinned_, data_, kBytes, cudaMemcpyDefault, nullptr), cudaSuccess);
  EXPECT_EQ(cudaFree(data_), cudaSuccess);
  EXPECT_THAT(Machine().TakeRaces(), ElementsAre(HasSubstr("by cudaFree is not ordered after the read by cudaMemcpy")));
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(*static_cast<unsigned char*>(pinned_), kPoison);
}

TEST_F(CudaDoubleTest, AByteBeyondWhatWasAllocatedIsReported) {
  EXPECT_EQ(cudaMemsetAsync(data_, 0, kBytes + 1, nullptr), cudaErrorInvalidValue);
  EXPECT_THAT(Machine().TakeRaces(),
              ElementsAre("1001 bytes that cudaMemsetAsync writes lie outside of what was allocated"));
  EXPECT_EQ(LaunchWork("work", {{{static_cast<char*>(data_) - 1, 2, false}}, nullptr}, nullptr), cudaErrorInvalidValue);
  EXPECT_THAT(Machine().TakeRaces(), ElementsAre("2 bytes that work reads lie outside of what was allocated"));
}

TEST_F(CudaDoubleTest, WhatIsFreedWhileItIsUsedOrTwiceOrNeverIsReported) {
  EXPECT_THAT(Leaks(), ElementsAre("1000 bytes of device 0's memory", "1000 bytes of registered host memory"));
  EXPECT_EQ(Read(nullptr), cudaSuccess);
  EXPECT_EQ(cudaFree(data_), cudaSuccess) << "it does not wait";
  EXPECT_THAT(Machine().TakeRaces(), ElementsAre(HasSubstr("by cudaFree is not ordered after the read by a read")));
  EXPECT_EQ(cudaFree(data_), cudaErrorInvalidValue);
  EXPECT_THAT(Machine().TakeRaces(), ElementsAre(HasSubstr("cudaFree: nothing was allocated there")));
  EXPECT_EQ(Read(nullptr), cudaErrorInvalidValue);
  EXPECT_THAT(Machine().TakeRaces(), ElementsAre(HasSubstr("outside of what was allocated")));
  EXPECT_EQ(cudaFreeHost(pinned_), cudaSuccess);
  EXPECT_THAT(Leaks(), IsEmpty());
  const cudaEvent_t event = MakeEvent();
  const cudaStream_t stream = MakeStream(cudaStreamDefault);
  EXPECT_THAT(Leaks(), ElementsAre("a stream of device 0", "an event of device 0"));
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaErrorInvalidResourceHandle);
  EXPECT_THAT(Machine().TakeRaces(), ElementsAre(HasSubstr("no such event"), HasSubstr("no such stream")));
}

TEST_F(CudaDoubleTest, RegisteredMemoryIsOfOnePieceToCopiesAndOfAnyToKernels) {
  alignas(4096) static char memory[8192];
  char* const middle = memory + 4000;
  EXPECT_EQ(cudaHostRegister(memory, 4096, cudaHostRegisterDefault), cudaSuccess);
  EXPECT_EQ(cudaHostRegister(middle, 100, 0), cudaErrorHostMemoryAlreadyRegistered);
  EXPECT_EQ(Touch("a kernel", nullptr, middle, false), cudaErrorInvalidValue) << "only a part is registered";
  EXPECT_EQ(cudaHostRegister(memory + 4096, 4096, cudaHostRegisterDefault), cudaSuccess);
  EXPECT_EQ(Touch("a kernel", nullptr, middle, false), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(data_, middle, kBytes, cudaMemcpyDefault, nullptr), cudaErrorInvalidValue);
  EXPECT_THAT(Machine().TakeRaces(), ElementsAre(HasSubstr("are registered in part"), HasSubstr("one by one")));
  EXPECT_EQ(cudaHostUnregister(memory), cudaSuccess);
  EXPECT_THAT(Machine().TakeRaces(), ElementsAre(HasSubstr("by cudaHostUnregister is not ordered after the read")));
  EXPECT_EQ(cudaHostUnregister(memory), cudaErrorHostMemoryNotRegistered);
  EXPECT_EQ(cudaHostUnregister(memory + 4096), cudaSuccess);
  EXPECT_EQ(Touch("a kernel", nullptr, memory, false), cudaErrorInvalidValue) << "pageable";
}

TEST_F(CudaDoubleTest, KernelsReachRegisteredMemoryThatIsMappedForTheirDevice) {
  alignas(4096) static char memory[4096];
  const auto reaches = [&](unsigned flags, int device) {
    EXPECT_EQ(cudaHostRegister(memory, sizeof memory, flags), cudaSuccess);
    EXPECT_EQ(cudaSetDevice(device), cudaSuccess);
    const bool reached = Touch("a kernel", nullptr, memory, false) == cudaSuccess;
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    cudaPointerAttributes attributes;
    EXPECT_EQ(cudaPointerGetAttributes(&attributes, memory), cudaSuccess);
    EXPECT_EQ(attributes.devicePointer == memory, reached);
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
    EXPECT_EQ(cudaHostUnregister(memory), cudaSuccess);
    EXPECT_EQ(Machine().TakeRaces().empty(), reached);
    return reached;
  };
  EXPECT_TRUE(reaches(cudaHostRegisterDefault, 1));
  EXPECT_TRUE(reaches(cudaHostRegisterPortable | cudaHostRegisterMapped, 1));
  EXPECT_TRUE(reaches(cudaHostRegisterMapped, 0));
  EXPECT_FALSE(reaches(cudaHostRegisterMapped, 1));
  EXPECT_FALSE(reaches(cudaHostRegisterPortable, 0));
}

TEST_F(CudaDoubleTest, ADeviceHasSoMuchMemoryAndNoMore) {
  Options options;
  options.device_bytes = 10'000;
  Begin(options);
  void* data = nullptr;
  size_t free = 0, total = 0;
  EXPECT_EQ(cudaMalloc(&data, 10'001), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "an error that nothing is lost by is told once";
  EXPECT_EQ(cudaMalloc(&data, 6000), cudaSuccess);
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(free, 4000u);
  EXPECT_EQ(total, 10'000u);
  EXPECT_EQ(cudaMalloc(&data, 6000), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaSetDevice(1), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&data, 6000), cudaSuccess);
}

TEST_F(CudaDoubleTest, TheFirstLaunchOnADeviceTakesMemoryForGood) {
  Options options;
  options.device_bytes = 10'000;
  options.module_bytes = 1000;
  Begin(options);
  size_t free = 0, total = 0;
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(free, 10'000u);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(LaunchWork("any", {}, nullptr), cudaSuccess);
    EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
    EXPECT_EQ(free, 9000u);
  }
}

TEST_F(CudaDoubleTest, KernelsReachAnotherDevicesMemoryOnlyWhereThatIsAllowedAndCopiesDoAlways) {
  EXPECT_EQ(cudaSetDevice(1), cudaSuccess);
  EXPECT_EQ(Read(nullptr), cudaErrorInvalidValue);
  EXPECT_THAT(Machine().TakeRaces(), ElementsAre(HasSubstr("are not accessible to device 1")));
  void* mine = nullptr;
  EXPECT_EQ(cudaMalloc(&mine, kBytes), cudaSuccess);
  EXPECT_EQ(cudaMemcpyPeerAsync(mine, 1, data_, 0, kBytes, nullptr), cudaSuccess);
  EXPECT_EQ(cudaDeviceEnablePeerAccess(0, 0), cudaSuccess);
  EXPECT_EQ(cudaDeviceEnablePeerAccess(0, 0), cudaErrorPeerAccessAlreadyEnabled);
  EXPECT_EQ(Read(nullptr), cudaSuccess);
  EXPECT_THAT(Machine().TakeRaces(), IsEmpty());
}

TEST_F(CudaDoubleTest, KernelsAndRecordsAreOfTheirStreamsDevice) {
  const cudaStream_t stream = MakeStream(cudaStreamNonBlocking);
  const cudaEvent_t event = MakeEvent();
  EXPECT_EQ(cudaSetDevice(1), cudaSuccess);
  EXPECT_EQ(Read(stream), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventRecord(event, nullptr), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(nullptr, event, 0), cudaSuccess);
}

// The driver's calls, found as the device finds them.
template <typename Function>
Function* Driver(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  EXPECT_EQ(cudaGetDriverEntryPointByVersion(name, &found, 11000, cudaEnableDefault, &result), cudaSuccess);
  EXPECT_EQ(result, cudaDriverEntryPointSuccess) << name;
  return reinterpret_cast<Function*>(found);
}
#define DRIVER(name) Driver<decltype(name)>(#name)

TEST_F(CudaDoubleTest, MappedMemoryKeepsItsContentsWhereverItIsMappedAndNeedsAccess) {
  constexpr size_t kGranule = 2 << 20;
  CUmemAllocationProp properties = {};
  properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
  const CUmemAccessDesc access = {properties.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  CUdeviceptr begin = 0;
  CUmemGenericAllocationHandle handle = 0;
  ASSERT_EQ(DRIVER(cuMemAddressReserve)(&begin, 2 * kGranule, 0, 0, 0), CUDA_SUCCESS);
  ASSERT_EQ(DRIVER(cuMemCreate)(&handle, kGranule, &properties, 0), CUDA_SUCCESS);
  ASSERT_EQ(DRIVER(cuMemMap)(begin, kGranule, 0, handle, 0), CUDA_SUCCESS);
  ASSERT_EQ(DRIVER(cuMemRelease)(handle), CUDA_SUCCESS);
  data_ = reinterpret_cast<void*>(begin);
  EXPECT_EQ(Write(nullptr), cudaErrorInvalidValue) << "no device has access";
  ASSERT_EQ(DRIVER(cuMemSetAccess)(begin, kGranule, &access, 1), CUDA_SUCCESS);
  EXPECT_THAT(Contents(), Each(static_cast<char>(kPoison)));
  EXPECT_EQ(cudaMemset(data_, 5, kBytes), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  ASSERT_EQ(DRIVER(cuMemRetainAllocationHandle)(&handle, data_), CUDA_SUCCESS);
  EXPECT_EQ(DRIVER(cuMemMap)(begin + kGranule, kGranule, 0, handle, 0), CUDA_ERROR_INVALID_VALUE) << "a second place";
  ASSERT_EQ(DRIVER(cuMemUnmap)(begin, kGranule), CUDA_SUCCESS);
  ASSERT_EQ(DRIVER(cuMemMap)(begin + kGranule, kGranule, 0, handle, 0), CUDA_SUCCESS);
  ASSERT_EQ(DRIVER(cuMemSetAccess)(begin + kGranule, kGranule, &access, 1), CUDA_SUCCESS);
  data_ = reinterpret_cast<void*>(begin + kGranule);
  EXPECT_THAT(Contents(), Each(5));
  Machine().TakeRaces();
  EXPECT_EQ(DRIVER(cuMemUnmap)(begin, kGranule), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(DRIVER(cuMemMap)(begin + kGranule, kGranule, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(DRIVER(cuMemAddressFree)(begin, 2 * kGranule), CUDA_ERROR_INVALID_VALUE) << "something is mapped there";
  EXPECT_EQ(Machine().TakeRaces().size(), 3u);
  EXPECT_EQ(Read(nullptr), cudaSuccess);
  EXPECT_EQ(DRIVER(cuMemUnmap)(begin + kGranule, kGranule), CUDA_SUCCESS);
  EXPECT_THAT(Machine().TakeRaces(), ElementsAre(HasSubstr("by cuMemUnmap is not ordered after the read by a read")));
  EXPECT_EQ(DRIVER(cuMemAddressFree)(begin, 2 * kGranule), CUDA_SUCCESS);
  EXPECT_THAT(Leaks(), Contains("a handle of 2097152 bytes of device 0's memory"));
  EXPECT_EQ(DRIVER(cuMemRelease)(handle), CUDA_SUCCESS);
  EXPECT_EQ(DRIVER(cuMemRelease)(handle), CUDA_ERROR_INVALID_VALUE);
}

TEST_F(CudaDoubleTest, TheNthCallFailsAndDoesNothing) {
  FailCall("cudaMalloc", 2, cudaErrorMemoryAllocation);
  void* data = nullptr;
  EXPECT_EQ(cudaMalloc(&data, kBytes), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&data, kBytes), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&data, kBytes), cudaSuccess);
  EXPECT_EQ(Calls("cudaMalloc"), 4);
  FailCall("", 2, cudaErrorUnknown);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cudaMemsetAsync(data, 0, kBytes, nullptr), cudaErrorUnknown);
  std::thread([] { EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "another thread's"; }).join();
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorUnknown);
  EXPECT_EQ(cudaGetLastError(), cudaErrorUnknown);
}

TEST_F(CudaDoubleTest, AfterAnErrorThatAProcessMustEndByItsDeviceAnswersWithNothingElse) {
  for (const cudaError_t error : {cudaErrorIllegalAddress, cudaErrorECCUncorrectable, cudaErrorLaunchFailure}) {
    Begin({});
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
    const cudaEvent_t event = MakeEvent();
    FailCall("cudaEventRecord", 1, error);
    EXPECT_EQ(cudaEventRecord(event, nullptr), error);
    EXPECT_EQ(cudaEventSynchronize(event), error);
    EXPECT_EQ(cudaGetLastError(), error);
    std::thread([error] { EXPECT_EQ(cudaGetLastError(), error) << "any thread's"; }).join();
    EXPECT_EQ(cudaSetDevice(1), cudaSuccess) << "another device";
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaSetDevice(0), error);
  }
}

TEST_F(CudaDoubleTest, AnOperationThatFailsIsToldByWhoeverAsksOnceItIsDone) {
  FailOperation(1, cudaErrorIllegalAddress);
  EXPECT_EQ(Write(nullptr), cudaSuccess);
  EXPECT_EQ(Read(nullptr), cudaSuccess) << "nobody knows yet";
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
  EXPECT_EQ(Read(nullptr), cudaErrorIllegalAddress);
}

TEST_F(CudaDoubleTest, ACallSiteCanBeLeftOut) {
  const cudaStream_t first = MakeStream(cudaStreamNonBlocking), second = MakeStream(cudaStreamNonBlocking);
  const auto stream = [&] {
    for (int i = 0; i < 2; ++i) {
      const cudaEvent_t event = MakeEvent();
      EXPECT_EQ(Write(first), cudaSuccess);
      EXPECT_EQ(cudaEventRecord(event, first), cudaSuccess);
      EXPECT_EQ(cudaStreamWaitEvent(second, event, 0), cudaSuccess);
      EXPECT_EQ(Read(second), cudaSuccess);
      EXPECT_EQ(cudaStreamSynchronize(second), cudaSuccess);
    }
    return Machine().TakeRaces();
  };
  EXPECT_THAT(stream(), IsEmpty());
  int caught = 0;
  for (const Site& site : Sites()) {
    DropSite(site.address);
    caught += !stream().empty();
    DropSite(nullptr);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  EXPECT_EQ(caught, 3) << "the record, the wait, and the synchronization, before the next write";
}

void Unknown() {}
TEST_F(CudaDoubleTest, AKernelWithoutABodyIsAnErrorUnlessOnlyLaunchesAreLookedAt) {
  const auto* const function = reinterpret_cast<const void*>(&Unknown);
  NameKernel(function, "_Z7Unknownv");
  EXPECT_EQ(cudaLaunchKernel(function, 2, 32, nullptr, 0, nullptr), cudaErrorInvalidDeviceFunction);
  EXPECT_THAT(Machine().TakeRaces(), ElementsAre("a launch of _Z7Unknownv, which has no body here"));
  EXPECT_THAT(Launches(), IsEmpty());
  Options options;
  options.audit = true;
  Begin(options);
  EXPECT_EQ(cudaLaunchKernel(function, 2, 32, nullptr, 0, nullptr), cudaSuccess);
  ASSERT_EQ(Launches().size(), 1u);
  EXPECT_EQ(Launches()[0].kernel, "_Z7Unknownv");
  EXPECT_EQ(Launches()[0].grid.x, 2u);
  EXPECT_EQ(Launches()[0].block.x, 32u);
}

}  // namespace
}  // namespace ditserve::cuda_double
