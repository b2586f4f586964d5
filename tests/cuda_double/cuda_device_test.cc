// The CUDA device itself, on the double of its runtime: what each of its calls promises, and what is left when one of
// CUDA's fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/devices/cast.h"
#include "core/devices/device_module.h"
#include "tests/cuda_double/cuda_double.h"
#include "tests/cuda_double/round_trip.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class CudaDeviceTest : public ::testing::Test {
 protected:
  CudaDeviceTest() { cuda_double::Begin({}); }
  ~CudaDeviceTest() override {
    EXPECT_THAT(cuda_double::Machine().TakeRaces(), IsEmpty());
    EXPECT_THAT(cuda_double::Leaks(), IsEmpty());
  }

  // Calls `check` after a round trip on a device of which the n-th call of a function failed with `error`, for each
  // function and n: but for waiting and giving back, which fail where a device is lost and not else.
  template <typename Check>
  static void WithEachCallFailed(cudaError_t error, const Check& check) {
    std::map<std::string, int64_t> calls;
    for (int i = 0; i < 2; ++i) {  // Once more than LibTorch needs to set itself up.
      cuda_double::Begin({});
      const std::unique_ptr<Device> device = MakeCuda();
      RoundTrip trip(*device);
      EXPECT_THAT(trip.Run(), IsOk());
      calls = trip.calls();
    }
    calls.erase("cuMemRelease");
    if (!cuda_double::IsSticky(error)) {
      calls.erase("cudaEventSynchronize");
      calls.erase("cudaHostRegister");  // Memory is used as it is then.
      calls.erase("cudaSetDevice");     // Whoever asks an event asks again.
    }
    for (const auto& [function, count] : calls) {
      for (int64_t n = 1; n <= count; ++n) {
        SCOPED_TRACE(absl::StrCat(function, ", call ", n));
        cuda_double::Begin({});
        cuda_double::FailCall(function, n, error);
        std::string why;
        const std::unique_ptr<Device> device(DitserveMakeDevice(0, Memory::kDevice, &why));
        const absl::Status status = device == nullptr ? absl::InternalError(why) : RoundTrip(*device).Run();
        check(device.get(), status);
      }
    }
    cuda_double::Begin({});
  }
};

TEST_F(CudaDeviceTest, WhatGoesThroughADeviceComesBackRightAndNobodyWaitsButForEvents) {
  const std::unique_ptr<Device> device = MakeCuda();
  RoundTrip trip(*device);
  EXPECT_THAT(trip.Run(), IsOk());
  EXPECT_TRUE(trip.right());
  EXPECT_EQ(cuda_double::HostSynchronizations(), cuda_double::Calls("cudaEventSynchronize"));
  EXPECT_EQ(cuda_double::Calls("cudaMemcpyAsync"), 2 + 2) << "in parts that lie in one registered piece each";
}

TEST_F(CudaDeviceTest, ComputesInBFloat16AndFloat8WhereTheGpuHasThem) {
  for (const int sm : {75, 80, 86, 89, 90, 100, 120}) {
    cuda_double::Options options;
    options.sm = sm;
    cuda_double::Begin(options);
    const std::unique_ptr<Device> device = MakeCuda();
    for (const DType dtype : {DType::kFloat32, DType::kFloat16}) EXPECT_THAT(device->CanCompute(dtype), IsOk()) << sm;
    if (sm >= 80) {
      EXPECT_THAT(device->CanCompute(DType::kBFloat16), IsOk()) << sm;
    } else {
      EXPECT_THAT(device->CanCompute(DType::kBFloat16),
                  StatusIs(absl::StatusCode::kFailedPrecondition,
                           "computing in bfloat16 takes compute capability 8.0, cuda:0 has 7.5"));
    }
    if (sm >= 89) {
      EXPECT_THAT(device->CanCompute(DType::kFloat8E4M3), IsOk()) << sm;
    } else {
      EXPECT_THAT(
          device->CanCompute(DType::kFloat8E4M3),
          StatusIs(absl::StatusCode::kFailedPrecondition,
                   absl::StrCat("float8_e4m3fn takes compute capability 8.9, cuda:0 has ", sm / 10, ".", sm % 10)));
    }
  }
}

TEST_F(CudaDeviceTest, WhicheverCallFailsItIsToldOnceAndNothingIsUnderWayOrLeftBehind) {
  WithEachCallFailed(cudaErrorInvalidValue, [](const Device*, const absl::Status& status) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInternal, "error 1"));
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    EXPECT_THAT(cuda_double::Machine().TakeRaces(), IsEmpty());
  });
}

TEST_F(CudaDeviceTest, WhicheverCallADeviceIsLostByItIsToldAndNobodyWaits) {
  WithEachCallFailed(cudaErrorIllegalAddress, [](Device* device, const absl::Status& status) {
    EXPECT_THAT(std::string(status.message()), HasSubstr("error 700"));
    if (device != nullptr) {
      EXPECT_THAT(device->Health(), StatusIs(absl::StatusCode::kUnavailable, "cuda:0 is lost: "));
    }
    cuda_double::Machine().TakeRaces();  // Memory that is given back is not used: nothing is done there any more.
  });
}

TEST_F(CudaDeviceTest, AnOperationThatADeviceIsLostByIsToldByWhoeverWaits) {
  {
    const std::unique_ptr<Device> device = MakeCuda();
    RoundTrip trip(*device);
    cuda_double::FailOperation(1, cudaErrorIllegalAddress);
    EXPECT_THAT(trip.Run(), StatusIs(absl::StatusCode::kUnavailable, "cuda:0 is lost: "));
    EXPECT_THAT(device->Health(), StatusIs(absl::StatusCode::kUnavailable, "error 700"));
  }
  cuda_double::Machine().TakeRaces();
  cuda_double::Begin({});
}

// Whatever their places and numbers are: a few, as many as go through one slot, or more than all slots hold.
TEST_F(CudaDeviceTest, WhatIsConvertedOnItsWayHasTheBitsOfTheHostsConversions) {
  const std::unique_ptr<Device> device = MakeCuda();
  constexpr int64_t kBytes = 20 * kGranule;
  const Range host(*device, Memory::kHost, kBytes), own(*device, Memory::kDevice, kBytes),
      back(*device, Memory::kHost, kBytes);
  constexpr DType kThrough[] = {DType::kFloat8E4M3};
  const auto check = [&](DType from, int64_t skipped, absl::Span<const DType> through, DType to, int64_t into,
                         int64_t count) {
    std::vector<std::byte> expected(static_cast<size_t>((into + count + 16) * SizeOf(to)), std::byte{0x5a});
    std::byte* const values = host.data() + skipped * SizeOf(from);
    for (int64_t i = 0; i < count * SizeOf(from); ++i) values[i] = static_cast<std::byte>((i * 37 + i / 251) % 127);
    Cast(values, from, through, expected.data() + into * SizeOf(to), to, count);
    std::memset(back.data(), 0x5a, expected.size());
    cuda_double::Machine().HostWrites(host.data(), kBytes, "the test");
    cuda_double::Machine().HostWrites(back.data(), kBytes, "the test");
    const auto bytes = static_cast<int64_t>(expected.size());
    const EventPtr blank = *device->Enqueue({back.Of(DType::kUint8), {}, own.Of(DType::kUint8), bytes}, {});
    const EventPtr there = *device->Enqueue(
        {host.Of(from, skipped * SizeOf(from)), through, own.Of(to, into * SizeOf(to)), count}, {blank});
    const EventPtr arrived = *device->Enqueue({own.Of(DType::kUint8), {}, back.Of(DType::kUint8), bytes}, {there});
    EXPECT_THAT(arrived->Wait(), IsOk());
    cuda_double::Machine().HostReads(back.data(), kBytes, "the test");
    EXPECT_EQ(std::memcmp(back.data(), expected.data(), expected.size()), 0)
        << Name(from) << " to " << Name(to) << ", " << count << " from " << skipped << " to " << into;
  };
  for (const auto& [from, to] : {std::pair(DType::kFloat8E4M3, DType::kBFloat16),
                                 {DType::kBFloat16, DType::kFloat32},
                                 {DType::kFloat32, DType::kBFloat16}}) {
    for (int64_t count = 0; count <= 64; ++count) check(from, 0, {}, to, 0, count);
    for (const int64_t skipped : {1, 7}) {
      for (const int64_t into : {1, 8, 5}) check(from, skipped, kThrough, to, into, 1000);
    }
    check(from, 3, {}, to, 5, 9'000'001);
  }
}

// One after the other they take the sum of what each takes, but where one is copied while another is converted.
TEST_F(CudaDeviceTest, WhatIsCopiedDoesNotWaitForWhatIsConverted) {
  const std::unique_ptr<Device> device = MakeCuda();
  const Range host(*device, Memory::kHost, 2 * kGranule), own(*device, Memory::kDevice, 4 * kGranule);
  constexpr int64_t kCount = kGranule / 2;
  cuda_double::Machine().SetDurations([](const std::string& place) {
    return absl::Milliseconds(place == "cudaMemcpyAsync" ? 10 : absl::StrContains(place, "CastKernel") ? 9 : 0);
  });
  Events events;
  for (int i = 0; i < 4; ++i) {
    events.push_back(*device->Enqueue({host.Of(DType::kBFloat16), {}, own.Of(DType::kFloat32), kCount}, {}));
  }
  EXPECT_THAT(WaitForAll(events), IsOk());
  EXPECT_EQ(cuda_double::Machine().EndsAt(), absl::Milliseconds(4 * 10 + 9));
  EXPECT_NEAR(device->CopySpeed().value_or(0), kGranule / 0.010, 1) << "of the link alone";
  for (const cuda_double::Launch& launch : cuda_double::Launches()) EXPECT_THAT(launch.kernel, HasSubstr("CastKernel"));
  EXPECT_EQ(cuda_double::Launches().size(), 4u);
  EXPECT_EQ(cuda_double::Calls("cudaMemcpyAsync"), 4) << "no kernel reads the host's memory";
}

// A product of half a millisecond holds the whole GPU, and is not interrupted. Weights arrive and are converted all the
// same, as fast as the link is.
TEST_F(CudaDeviceTest, BetweenProductsCastsGoFirstAndTheLinkHasSlotsUntilThen) {
  constexpr int kPieces = 120, kProducts = 11;
  const absl::Duration copy = absl::Microseconds(76), cast = absl::Microseconds(8), product = absl::Microseconds(500);
  const std::unique_ptr<Device> device = MakeCuda();
  EXPECT_THAT(device->BeginOperations(), IsOk());
  const Range host(*device, Memory::kHost, kGranule), own(*device, Memory::kDevice, kGranule);
  cuda_double::Machine().SetDurations([&](const std::string& place) {
    return place == "cudaMemcpyAsync"               ? copy
           : absl::StrContains(place, "CastKernel") ? cast
           : place == "a product"                   ? product
                                                    : absl::ZeroDuration();
  });
  Events events;
  for (int i = 0; i < kPieces; ++i) {
    events.push_back(*device->Enqueue({host.Of(DType::kFloat8E4M3), {}, own.Of(DType::kBFloat16), 1000}, {}));
  }
  for (int i = 0; i < kProducts; ++i) {
    EXPECT_EQ(cuda_double::LaunchWork("a product", {}, c10::cuda::getCurrentCUDAStream(0)), cudaSuccess);
  }
  const absl::Duration moving = kPieces * copy, ended = cuda_double::EndsAtOnSharedProcessors();
  EXPECT_GE(ended, moving);
  EXPECT_LE(ended * 9 / 10, moving) << "the link moved for " << absl::FDivDuration(moving, ended) << " of it";
  RecordProperty("share_of_time_that_the_link_moved", absl::StrCat(absl::FDivDuration(moving, ended)));
  EXPECT_THAT(WaitForAll(events), IsOk());
}

TEST_F(CudaDeviceTest, AMarkIsBehindCopiesCastsAndOperations) {
  const std::unique_ptr<Device> device = MakeCuda();
  EXPECT_THAT(device->BeginOperations(), IsOk());
  const Range host(*device, Memory::kHost, kGranule), own(*device, Memory::kDevice, 2 * kGranule);
  const auto set = [&] {
    const auto blank = device->Enqueue({host.Of(DType::kFloat32), {}, own.Of(DType::kFloat32), 1000}, {});
    EXPECT_THAT(WaitForAll({*blank}), IsOk());
  };
  const auto wait_for_mark = [&] {
    const absl::StatusOr<Events> mark = device->Mark();
    ASSERT_THAT(mark, IsOk());
    EXPECT_THAT(WaitForAll(*mark), IsOk());
  };
  set();
  const auto copied = device->Enqueue({own.Of(DType::kFloat32), {}, host.Of(DType::kFloat32, 8192), 1000}, {});
  wait_for_mark();
  EXPECT_TRUE((*copied)->Done());
  cuda_double::Machine().HostReads(host.data() + 8192, 4000, "the test");
  EXPECT_THAT(device->Operate({own.Of(DType::kFloat32), {}, host.Of(DType::kFloat32, 16384), 1000}), IsOk());
  wait_for_mark();
  cuda_double::Machine().HostReads(host.data() + 16384, 4000, "the test");
  const auto cast = device->Enqueue({own.Of(DType::kFloat32), {}, own.Of(DType::kBFloat16, kGranule), 1000}, {});
  wait_for_mark();
  EXPECT_TRUE((*cast)->Done());
}

TEST_F(CudaDeviceTest, AnEventOfOneDeviceOrdersAnother) {
  for (const bool ordered : {true, false}) {
    const std::unique_ptr<Device> first = MakeCuda(0), second = MakeCuda(1);
    const Range host(*first, Memory::kHost, kGranule), one(*first, DeviceMemory(0), kGranule),
        two(*second, DeviceMemory(1), kGranule);
    const EventPtr there = *first->Enqueue({host.Of(DType::kFloat32), {}, one.Of(DType::kFloat32), 1000}, {});
    const EventPtr back = *first->Enqueue({one.Of(DType::kFloat32), {}, host.Of(DType::kFloat32, 8192), 1000}, {there});
    const EventPtr other = *second->Enqueue({host.Of(DType::kFloat32, 8192), {}, two.Of(DType::kFloat32), 1000},
                                            {ordered ? back : nullptr});
    EXPECT_THAT(WaitForAll({there, back, other}), IsOk());
    EXPECT_EQ(cuda_double::Machine().TakeRaces().empty(), ordered);
  }
}

TEST_F(CudaDeviceTest, HostMemoryIsRegisteredInPiecesAndAllOfItIsGivenBack) {
  const std::unique_ptr<Device> device = MakeCuda();
  std::byte* const begin = *device->ReserveAddresses(Memory::kHost, 4 * kGranule);
  EXPECT_THAT(device->Commit(Memory::kHost, begin, 2 * kGranule), IsOk());
  begin[2 * kGranule - 1] = std::byte{1};
  EXPECT_THAT(device->Move(Memory::kHost, begin, begin + 2 * kGranule, 2 * kGranule), IsOk());
  begin[4 * kGranule - 1] = std::byte{1};
  EXPECT_THAT(cuda_double::Leaks(), Contains("2097152 bytes of registered host memory").Times(2));
  cuda_double::FailCall("cudaHostRegister", 2, cudaErrorMemoryAllocation);
  EXPECT_THAT(device->Commit(Memory::kHost, begin, 2 * kGranule), IsOk());
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(device->unpinned_bytes(), kGranule);
  device->Decommit(Memory::kHost, begin, 4 * kGranule);
  EXPECT_EQ(device->unpinned_bytes(), 0);
  device->ReleaseAddresses(Memory::kHost, begin, 4 * kGranule);
}

TEST_F(CudaDeviceTest, HostMemoryHasItsPagesBeforeItIsRegistered) {
  const std::unique_ptr<Device> device = MakeCuda();
  const Range host(*device, Memory::kHost, 4 * kGranule);
  EXPECT_EQ(cuda_double::Calls("cudaHostRegister"), 4);
  EXPECT_EQ(cuda_double::BytesRegisteredWithoutPages(), 0);
}

TEST_F(CudaDeviceTest, HostMemoryThatCantBeRegisteredIsCopiedAndConvertedAllTheSame) {
  const std::unique_ptr<Device> device = MakeCuda();
  cuda_double::FailCall("cudaHostRegister", 2, cudaErrorMemoryAllocation);
  const Range host(*device, Memory::kHost, 3 * kGranule), there(*device, Memory::kDevice, 3 * kGranule);
  EXPECT_EQ(device->unpinned_bytes(), kGranule);
  constexpr int64_t kCount = 600000;  // Of floats, more than one range.
  auto* const floats = reinterpret_cast<float*>(host.data());
  for (int64_t i = 0; i < kCount; ++i) floats[i] = static_cast<float>(i % 256);
  // Rounded on the way, back as it is, and widened on the way back, by copies and by operations.
  const auto bf16 = DType::kBFloat16;
  const EventPtr rounded = *device->Enqueue({host.Of(DType::kFloat32), {}, there.Of(bf16), kCount}, {});
  const EventPtr copied = *device->Enqueue({there.Of(bf16), {}, host.Of(bf16, kGranule), kCount}, {rounded});
  EXPECT_THAT(WaitForAll({copied}), IsOk());
  const auto* const halves = reinterpret_cast<const uint16_t*>(host.data() + kGranule);
  for (int64_t i = 0; i < kCount; ++i) ASSERT_EQ(static_cast<float>(i % 256), std::bit_cast<float>(halves[i] << 16));
  EXPECT_THAT(device->BeginOperations(), IsOk());
  EXPECT_THAT(device->Operate({there.Of(bf16), {}, host.Of(DType::kFloat32, kGranule), kCount}), IsOk());
  EXPECT_THAT(device->Operate({host.Of(DType::kFloat32, kGranule), {}, there.Of(bf16, kGranule), kCount}), IsOk());
  const EventPtr operated = *device->RecordOperations();
  EXPECT_EQ(cuda_double::Launches().size(), 1u);  // Of what was copied to a slot: it reads the device's memory.
  const auto* const widened = reinterpret_cast<const float*>(host.data() + kGranule);
  for (int64_t i = 0; i < kCount; ++i) ASSERT_EQ(static_cast<float>(i % 256), widened[i]);
  EXPECT_THAT(WaitForAll({operated}), IsOk());
}

// Where that has a copy to wait for, in more than one part.
TEST_F(CudaDeviceTest, WhatTheHostConvertsHasArrived) {
  cuda_double::FailCall("cudaHostRegister", cuda_double::kEveryCall, cudaErrorNotSupported);
  const std::unique_ptr<Device> device = MakeCuda();
  const Range host(*device, Memory::kHost, 2 * kGranule), back(*device, Memory::kHost, 2 * kGranule),
      own(*device, Memory::kDevice, 4 * kGranule);
  constexpr int64_t kCount = 300000;
  auto* const floats = reinterpret_cast<float*>(host.data());
  for (int64_t i = 0; i < kCount; ++i) floats[i] = static_cast<float>(i % 256);
  const DType f32 = DType::kFloat32, bf16 = DType::kBFloat16;
  const EventPtr there = *device->Enqueue({host.Of(f32), {}, own.Of(f32), kCount}, {});
  const EventPtr arrived = *device->Enqueue({own.Of(f32), {}, back.Of(f32), kCount}, {there});
  EXPECT_THAT(device->BeginOperations(), IsOk());
  EXPECT_THAT(device->ComputeAfter(arrived), IsOk());
  EXPECT_THAT(device->Operate({back.Of(f32), {}, own.Of(bf16, 2 * kGranule), kCount}), IsOk());
  EXPECT_THAT(device->Operate({own.Of(bf16, 2 * kGranule), {}, host.Of(f32), kCount}), IsOk());
  for (int64_t i = 0; i < kCount; ++i) ASSERT_EQ(static_cast<float>(i % 256), floats[i]);
  EXPECT_THAT(WaitForAll({there, arrived}), IsOk());
}

TEST_F(CudaDeviceTest, WhatKernelsHaveOtherAddressesForTheHostConverts) {
  cuda_double::Options options;
  options.host_apart = true;
  cuda_double::Begin(options);
  const std::unique_ptr<Device> device = MakeCuda();
  const Range host(*device, Memory::kHost, kGranule), there(*device, Memory::kDevice, kGranule);
  constexpr int64_t kCount = 1000;
  auto* const floats = reinterpret_cast<float*>(host.data());
  for (int64_t i = 0; i < kCount; ++i) floats[i] = static_cast<float>(i % 256);
  EXPECT_THAT(device->BeginOperations(), IsOk());
  EXPECT_THAT(device->Operate({host.Of(DType::kFloat32), {}, there.Of(DType::kBFloat16), kCount}), IsOk());
  EXPECT_THAT(device->Operate({there.Of(DType::kBFloat16), {}, host.Of(DType::kFloat32, 8192), kCount}), IsOk());
  const auto* const back = reinterpret_cast<const float*>(host.data() + 8192);
  for (int64_t i = 0; i < kCount; ++i) ASSERT_EQ(static_cast<float>(i % 256), back[i]);
  EXPECT_THAT(cuda_double::Launches(), IsEmpty());
}

TEST_F(CudaDeviceTest, AnEventIsNotPassedWhereAskingFails) {
  const std::unique_ptr<Device> device = MakeCuda();
  const Range host(*device, Memory::kHost, kGranule), there(*device, Memory::kDevice, kGranule);
  const EventPtr copied = *device->Enqueue({host.Of(DType::kFloat32), {}, there.Of(DType::kFloat32), 1000}, {});
  cuda_double::FailCall("cudaEventQuery", 1, cudaErrorInvalidValue);
  EXPECT_FALSE(copied->Done());
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  cuda_double::FailCall("cudaEventSynchronize", 1, cudaErrorInvalidValue);
  EXPECT_THAT(copied->Wait(), IsOk());
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_TRUE(copied->Done());
}

TEST_F(CudaDeviceTest, WhereWaitingFailsTwiceTheDeviceIsLost) {
  {
    const std::unique_ptr<Device> device = MakeCuda();
    const Range host(*device, Memory::kHost, kGranule), there(*device, Memory::kDevice, kGranule);
    const EventPtr copied = *device->Enqueue({host.Of(DType::kFloat32), {}, there.Of(DType::kFloat32), 1000}, {});
    cuda_double::FailCall("cudaEventSynchronize", cuda_double::kEveryCall, cudaErrorInvalidValue);
    EXPECT_THAT(copied->Wait(), StatusIs(absl::StatusCode::kUnavailable, "cuda:0 is lost: waiting for the device"));
    EXPECT_THAT(device->Health(), StatusIs(absl::StatusCode::kUnavailable, "cuda:0 is lost"));
    EXPECT_TRUE(copied->Done());
  }
  cuda_double::Machine().TakeRaces();  // As above.
  cuda_double::Begin({});
}

// The device, its context or the server between is gone; memory or a link is broken; the process must be terminated.
TEST_F(CudaDeviceTest, ADeviceIsLostByEachErrorThatOnlyANewProcessHelpsAgainst) {
  for (const cudaError_t error : {cudaErrorDevicesUnavailable,  cudaErrorNoDevice,
                                  cudaErrorDeviceUninitialized, cudaErrorContextIsDestroyed,
                                  cudaErrorMpsConnectionFailed, cudaErrorMpsRpcFailure,
                                  cudaErrorECCUncorrectable,    cudaErrorNvlinkUncorrectable,
                                  cudaErrorContained,           cudaErrorIllegalAddress,
                                  cudaErrorLaunchTimeout,       cudaErrorAssert,
                                  cudaErrorHardwareStackError,  cudaErrorIllegalInstruction,
                                  cudaErrorMisalignedAddress,   cudaErrorInvalidAddressSpace,
                                  cudaErrorInvalidPc,           cudaErrorLaunchFailure,
                                  cudaErrorTensorMemoryLeak,    cudaErrorMpsClientTerminated,
                                  cudaErrorExternalDevice}) {
    {
      const std::unique_ptr<Device> device = MakeCuda();
      cuda_double::FailCall("cudaStreamQuery", 1, error);
      EXPECT_THAT(device->Health(), StatusIs(absl::StatusCode::kUnavailable, "cuda:0 is lost: looking at the device"))
          << static_cast<int>(error);
    }
    cuda_double::Begin({});
  }
}

TEST_F(CudaDeviceTest, ADeviceStaysAfterErrorsOfOneCall) {
  const std::unique_ptr<Device> device = MakeCuda();
  for (const cudaError_t error :
       {cudaErrorInvalidValue, cudaErrorMemoryAllocation, cudaErrorInvalidResourceHandle, cudaErrorNotSupported,
        cudaErrorHostMemoryAlreadyRegistered, cudaErrorHostMemoryNotRegistered, cudaErrorUnknown}) {
    cuda_double::FailCall("cudaStreamQuery", 1, error);
    EXPECT_THAT(device->Health(), IsOk()) << static_cast<int>(error);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess) << static_cast<int>(error);
  }
}

TEST_F(CudaDeviceTest, ByAnErrorThatNobodyKnowsADeviceIsLostWhereItAnswersNothingElse) {
  {
    const std::unique_ptr<Device> device = MakeCuda();
    cuda_double::FailCall("cudaStreamQuery", 1, cudaErrorUnknown);
    cuda_double::FailCall("cudaMemGetInfo", 1, cudaErrorUnknown);
    EXPECT_THAT(device->Health(), StatusIs(absl::StatusCode::kUnavailable, "cuda:0 is lost: looking at the device"));
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  }
  cuda_double::Begin({});
}

TEST_F(CudaDeviceTest, AnAllocationThatIsRefusedOnItsWayGivesBackWhatItGot) {
  const std::unique_ptr<Device> device = MakeCuda();
  std::byte* const begin = *device->ReserveAddresses(Memory::kDevice, 8 * kGranule);
  for (const char* function : {"cuMemCreate", "cuMemMap", "cuMemSetAccess"}) {
    cuda_double::FailCall(function, function[5] == 'S' ? 1 : 3, cudaErrorMemoryAllocation);
    EXPECT_THAT(device->Commit(Memory::kDevice, begin, 4 * kGranule),
                StatusIs(absl::StatusCode::kResourceExhausted, ""));
  }
  for (const char* function : {"cuMemRetainAllocationHandle", "cuMemMap", "cuMemSetAccess"}) {
    EXPECT_THAT(device->Commit(Memory::kDevice, begin, 4 * kGranule), IsOk());
    cuda_double::FailCall(function, function[5] == 'S' ? 1 : 3, cudaErrorMemoryAllocation);
    EXPECT_THAT(device->Move(Memory::kDevice, begin, begin + 4 * kGranule, 4 * kGranule),
                StatusIs(absl::StatusCode::kResourceExhausted, ""));
  }
  EXPECT_THAT(cuda_double::Leaks(),
              Contains(HasSubstr("device 0's memory")).Times(static_cast<int>(device->staging_bytes() / kGranule)));
  device->ReleaseAddresses(Memory::kDevice, begin, 8 * kGranule);
}

// Each call may wait for the device.
TEST_F(CudaDeviceTest, MemoryIsTakenFromAddressesInOneCall) {
  const std::unique_ptr<Device> device = MakeCuda();
  std::byte* const begin = *device->ReserveAddresses(Memory::kDevice, 12 * kGranule);
  const int64_t made = cuda_double::Calls("cuMemCreate");
  EXPECT_THAT(device->Commit(Memory::kDevice, begin, 3 * kGranule), IsOk());
  EXPECT_THAT(device->Commit(Memory::kDevice, begin + 3 * kGranule, 3 * kGranule), IsOk());
  EXPECT_EQ(cuda_double::Calls("cuMemUnmap"), 0);
  EXPECT_THAT(device->Move(Memory::kDevice, begin, begin + 6 * kGranule, 6 * kGranule), IsOk());
  EXPECT_EQ(cuda_double::Calls("cuMemUnmap"), 1);
  device->Decommit(Memory::kDevice, begin + 6 * kGranule, 6 * kGranule);
  EXPECT_EQ(cuda_double::Calls("cuMemUnmap"), 2);
  EXPECT_EQ(cuda_double::Calls("cuMemCreate"), made + 6);
  device->ReleaseAddresses(Memory::kDevice, begin, 12 * kGranule);
}

TEST_F(CudaDeviceTest, TellsWhatTheDriverTellsOfItsMemory) {
  const std::unique_ptr<Device> device = MakeCuda();
  const Range own(*device, Memory::kDevice, 3 * kGranule);
  const absl::StatusOr<MemoryStatus> memory = device->MemoryStatusOf(Memory::kDevice);
  ASSERT_THAT(memory, IsOk());
  EXPECT_EQ(memory->total_bytes, cuda_double::Options().device_bytes);
  EXPECT_EQ(memory->available_bytes, memory->total_bytes - 3 * kGranule - device->staging_bytes());
}

// As NVML tells it, which makes no context itself; of a slice too, and not at all where NVML does not answer.
TEST_F(CudaDeviceTest, KnowsWhatItsContextTakes) {
  constexpr int64_t kContext = 301 << 20;
  cuda_double::Options options;
  options.context_bytes = kContext;
  for (const bool slices : {false, true}) {
    options.slices = slices;
    cuda_double::Begin(options);
    cuda_double::SetOthers(1, 70 << 20);
    const std::unique_ptr<Device> device = MakeCuda(1);
    EXPECT_EQ(device->runtime_bytes(), kContext);
    EXPECT_EQ(MakeCuda(1)->runtime_bytes(), 0) << "there is one context a device and process";
  }
  options.monitor = false;
  cuda_double::Begin(options);
  EXPECT_EQ(MakeCuda(1)->runtime_bytes(), 0);
  cuda_double::Begin({});
}

TEST_F(CudaDeviceTest, TheModuleTellsDriverAndDevicesWhateverTheirArchitecture) {
  for (const int sm : {80, 89, 90, 100, 120}) {
    cuda_double::Options options;
    options.sm = sm;
    cuda_double::Begin(options);
    CudaDescription description;
    std::string why;
    ASSERT_TRUE(DitserveDescribeCuda(&description, &why)) << why;
    EXPECT_EQ(description.driver_version, CUDART_VERSION);
    ASSERT_EQ(description.devices.size(), 2);
    EXPECT_EQ(description.devices[1].model, "Double 1");
    EXPECT_EQ(description.devices[1].capability, sm);
    EXPECT_EQ(description.devices[1].multiprocessors, 132);
    EXPECT_EQ(description.devices[1].memory_bytes, options.device_bytes);
  }
}

TEST_F(CudaDeviceTest, WhyThereIsNoDeviceIsToldInWordsAndLeavesNoErrorBehind) {
  const auto why = [](const std::string& function, cudaError_t error) {
    cuda_double::FailCall(function, 1, error);
    CudaDescription description;
    std::string told;
    EXPECT_FALSE(DitserveDescribeCuda(&description, &told));
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    return told;
  };
  EXPECT_THAT(why("cudaGetDeviceCount", cudaErrorNoDevice), HasSubstr("the NVIDIA driver shows no device"));
  EXPECT_THAT(why("cudaGetDeviceCount", cudaErrorInsufficientDriver), HasSubstr("CUDA 13.0 needs a newer one"));
  EXPECT_THAT(why("cudaDriverGetVersion", cudaErrorInsufficientDriver), HasSubstr("there is no NVIDIA driver"));
  EXPECT_THAT(why("cudaGetDeviceProperties", cudaErrorUnknown), HasSubstr("for its devices: error 999"));
}

TEST_F(CudaDeviceTest, ADeviceThatIsNotThereIsToldWithThoseThatAre) {
  std::string why;
  const std::unique_ptr<Device> device(DitserveMakeDevice(2, DeviceMemory(2), &why));
  EXPECT_EQ(device, nullptr);
  EXPECT_EQ(why, "there are cuda:0 (Double 0), cuda:1 (Double 1)");
}

TEST_F(CudaDeviceTest, AGpuWithoutVirtualMemoryManagementIsToldSo) {
  cuda_double::Options options;
  options.virtual_memory = false;
  cuda_double::Begin(options);
  std::string why;
  const std::unique_ptr<Device> device(DitserveMakeDevice(0, DeviceMemory(0), &why));
  EXPECT_EQ(device, nullptr);
  EXPECT_THAT(why, HasSubstr("has no virtual memory management"));
}

}  // namespace
}  // namespace ditserve
