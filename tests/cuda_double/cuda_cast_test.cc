// The cast kernel against core/devices/cast.h, bit for bit: every value that a dtype has, through chains of
// dtypes.
#include "core/devices/cuda_cast.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/devices/cast.h"
#include "tests/cuda_double/cuda_double.h"

namespace ditserve {
namespace {

constexpr std::array kDTypes = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3};
constexpr int64_t kValues = 1 << 16;

// All 2^16 or 2^8 values of a dtype; of float32 one for each upper half, with its lower half spread.
std::string ValuesOf(DType dtype) {
  std::string values(static_cast<size_t>(kValues * SizeOf(dtype)), '\0');
  for (int64_t i = 0; i < kValues; ++i) {
    const auto half = static_cast<uint32_t>(i);
    const uint32_t value = dtype == DType::kFloat32 ? half << 16 | (half * 40503u & 0xffffu) : half;
    std::memcpy(values.data() + i * SizeOf(dtype), &value, static_cast<size_t>(SizeOf(dtype)));
  }
  return values;
}

// One in seventeen of them, with all endings.
std::string Sample(const std::string& values, DType dtype) {
  std::string sample;
  for (int64_t i = 0; i < kValues; i += 17) {
    sample.append(values, static_cast<size_t>(i * SizeOf(dtype)), static_cast<size_t>(SizeOf(dtype)));
  }
  return sample;
}

// Every chain of so many roundings of which each is to another dtype than the one before; others launch a shorter one.
std::vector<std::vector<DType>> ChainsFrom(DType from, int roundings) {
  if (roundings == 0) return {{}};
  std::vector<std::vector<DType>> chains;
  for (const DType first : kDTypes) {
    if (first == from) continue;
    for (std::vector<DType> chain : ChainsFrom(first, roundings - 1)) {
      chain.insert(chain.begin(), first);
      chains.push_back(std::move(chain));
    }
  }
  return chains;
}

Roundings RoundingsOf(const std::vector<DType>& through) {
  Roundings roundings;
  for (const DType dtype : through) roundings.dtypes[roundings.count++] = dtype;
  return roundings;
}

class CudaCastTest : public ::testing::Test {
 protected:
  CudaCastTest() {
    cuda_double::Begin({});
    for (std::byte** memory : {&source_, &target_}) {
      EXPECT_EQ(cudaHostAlloc(reinterpret_cast<void**>(memory), kValues * sizeof(float), 0), cudaSuccess);
    }
  }
  ~CudaCastTest() override {
    EXPECT_EQ(cudaFreeHost(source_), cudaSuccess);
    EXPECT_EQ(cudaFreeHost(target_), cudaSuccess);
    EXPECT_THAT(cuda_double::Machine().TakeRaces(), ::testing::IsEmpty());
  }

  // Whether `count` elements from the one at `skipped` on are converted as on the CPU, into a target that begins as
  // many or `into` elements behind the beginning of a line, and nothing else is written.
  void Check(const std::string& values, DType from, const std::vector<DType>& through, DType to, int64_t skipped,
             int64_t count) {
    Check(values, from, through, to, skipped, count, skipped);
  }
  void Check(const std::string& values, DType from, const std::vector<DType>& through, DType to, int64_t skipped,
             int64_t count, int64_t into) {
    const std::byte* const source = source_ + skipped * SizeOf(from);
    std::byte* const target = target_ + into * SizeOf(to);
    std::memcpy(source_, values.data(), values.size());
    std::memset(target_, cuda_double::kPoison, kValues * sizeof(float));
    ASSERT_EQ(CudaCast(source, from, RoundingsOf(through), target, to, count, cudaStreamLegacy), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(cudaStreamLegacy), cudaSuccess);
    std::vector<std::byte> expected(kValues * sizeof(float), std::byte{cuda_double::kPoison});
    Cast(source, from, through, expected.data() + into * SizeOf(to), to, count);
    EXPECT_EQ(std::memcmp(target_, expected.data(), expected.size()), 0)
        << Name(from) << " through " << through.size() << " to " << Name(to) << ", " << count << " from " << skipped
        << " to " << into;
  }

  std::byte* source_ = nullptr;
  std::byte* target_ = nullptr;
};

TEST_F(CudaCastTest, EveryValueOfEveryChainOfUpToTwoRoundingsIsTheCpusBitForBit) {
  std::vector<std::vector<DType>> chains = {{}};
  for (const DType first : kDTypes) {
    chains.push_back({first});
    for (const DType second : kDTypes) chains.push_back({first, second});
  }
  for (const DType from : kDTypes) {
    const std::string values = ValuesOf(from);
    for (const DType to : kDTypes) {
      for (const std::vector<DType>& through : chains) Check(values, from, through, to, 0, kValues);
    }
  }
}

// From disk by way of three stations, as a profile's, and of the four that there is room for.
TEST_F(CudaCastTest, ThreeAndFourRoundingsOnTheWayAreTheCpusToo) {
  for (const DType from : kDTypes) {
    const std::string values = ValuesOf(from), sample = Sample(values, from);
    const auto sampled = static_cast<int64_t>(sample.size()) / SizeOf(from);
    for (const DType to : kDTypes) {
      for (const std::vector<DType>& through : ChainsFrom(from, 3)) Check(values, from, through, to, 0, kValues);
      for (const std::vector<DType>& through : ChainsFrom(from, kMaxRoundings)) {
        Check(sample, from, through, to, 0, sampled);
      }
    }
  }
}

// Whole groups are moved 16 bytes at a time; what begins elsewhere, and the rest, is not.
TEST_F(CudaCastTest, AnyBeginningAndAnyCountOfElementsIsConvertedAndNoMore) {
  for (const DType from : kDTypes) {
    const std::string values = ValuesOf(from);
    for (const DType to : kDTypes) {
      for (const int64_t skipped : {0, 1, 4, 16}) {
        for (int64_t count = 1; count <= 64; ++count) Check(values, from, {DType::kFloat16}, to, skipped, count);
        Check(values, from, {DType::kFloat16}, to, skipped, 4099);
        for (const int64_t into : {0, 3, 8}) Check(values, from, {}, to, skipped, 77, into);
      }
    }
  }
}

TEST_F(CudaCastTest, LaunchesOneKernelOfASizeThatTheCountHas) {
  ASSERT_EQ(CudaCast(source_, DType::kBFloat16, {}, target_, DType::kFloat32, 1000, cudaStreamLegacy), cudaSuccess);
  const std::vector<cuda_double::Launch> launches = cuda_double::Launches();
  ASSERT_EQ(launches.size(), 1u);
  EXPECT_THAT(launches[0].kernel, ::testing::HasSubstr("CastKernel"));
  EXPECT_LE(launches[0].grid.x, 4u);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace
}  // namespace ditserve
