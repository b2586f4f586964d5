#include "core/base/dtype.h"

#include <gtest/gtest.h>

#include <array>

namespace ditserve {
namespace {

constexpr std::array<DType, 4> kWeightDTypes = {DType::kFloat8E4M3, DType::kFloat16, DType::kBFloat16, DType::kFloat32};

TEST(DTypeTest, HasPyTorchsAndSafetensorsNamesAndSizes) {
  EXPECT_EQ(Name(DType::kFloat8E4M3), "float8_e4m3fn");
  EXPECT_EQ(Name(DType::kBFloat16), "bfloat16");
  EXPECT_EQ(SafetensorsName(DType::kFloat8E4M3), "F8_E4M3");
  EXPECT_EQ(SafetensorsName(DType::kFloat64), "F64");
  EXPECT_EQ(SizeOf(DType::kBool), 1);
  EXPECT_EQ(SizeOf(DType::kFloat16), 2);
  EXPECT_EQ(SizeOf(DType::kFloat32), 4);
  EXPECT_EQ(SizeOf(DType::kUint64), 8);
}

TEST(DTypeTest, IsFoundByItsNames) {
  for (int i = 0; i <= static_cast<int>(DType::kFloat64); ++i) {
    const DType dtype = static_cast<DType>(i);
    EXPECT_EQ(DTypeFromSafetensors(SafetensorsName(dtype)), dtype) << Name(dtype);
    EXPECT_EQ(DTypeFromName(Name(dtype)), dtype) << Name(dtype);
  }
  for (const char* unknown : {"", "bf16", "F8_E8M0", "F4", "C64", "BF16 "}) {
    EXPECT_EQ(DTypeFromSafetensors(unknown), std::nullopt) << unknown;
    EXPECT_EQ(DTypeFromName(unknown), std::nullopt) << unknown;
  }
}

TEST(DTypeTest, FourDTypesHoldWeights) {
  int weights = 0;
  for (int i = 0; i <= static_cast<int>(DType::kFloat64); ++i) weights += IsWeightDType(static_cast<DType>(i));
  EXPECT_EQ(weights, 4);
  for (const DType dtype : kWeightDTypes) EXPECT_TRUE(IsWeightDType(dtype)) << Name(dtype);
}

TEST(DTypeTest, ActivationsAreInWhatIsComputedInButForFloat8) {
  for (const DType dtype : kWeightDTypes) {
    EXPECT_EQ(ActivationDType(dtype), dtype == DType::kFloat8E4M3 ? DType::kBFloat16 : dtype) << Name(dtype);
  }
}

TEST(DTypeTest, WideningLosesNothingAndTheSixteenBitTypesDoNotHoldEachOther) {
  constexpr bool kLossless[4][4] = {// to float8, float16, bfloat16, float32
                                    {true, true, true, true},
                                    {false, true, false, true},
                                    {false, false, true, true},
                                    {false, false, false, true}};
  for (size_t from = 0; from < 4; ++from) {
    for (size_t to = 0; to < 4; ++to) {
      EXPECT_EQ(IsLossless(kWeightDTypes[from], kWeightDTypes[to]), kLossless[from][to])
          << Name(kWeightDTypes[from]) << " to " << Name(kWeightDTypes[to]);
    }
  }
}

}  // namespace
}  // namespace ditserve
