// What a pass of the whole model asks of CUDA: docs/cuda.md has these figures as a table.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "tests/cuda_audit/audited_pass.h"
#include "tests/testing/status_matchers.h"

namespace ditserve::cuda_audit {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Gt;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Pair;
using ::testing::SizeIs;
using ::testing::StartsWith;

int sm = 90;
constexpr size_t kProducts = 14 * 60 + 2;

// What a kernel does, by the first of these that is a part of its mangled name.
struct Kind {
  const char* part;
  const char* what;
};
constexpr Kind kKinds[] = {
    {"CastKernel", "casts of inputs and output"},
    {"Float8OperandsKernel", "operands of float8 products"},
    {"flash_fwd", "attention"},
    {"cutlass", "float8 products"},  // (Attention has names of that library too.)
    {"layer_norm_kernel", "norms"},
    {"sigmoid_kernel", "activations"},
    {"silu_kernel", "activations"},
    {"complexIfE", "rotations"},
    {"copy_kernel", "rotations"},
    {"MulFunctor", "products of elements"},
    {"CUDAFunctor", "sums of elements"},
};

std::map<std::string, int64_t> ByKind(const std::map<std::string, int64_t>& launches) {
  std::map<std::string, int64_t> kinds;
  for (const auto& [kernel, count] : launches) {
    std::string what = absl::StrCat("something else: ", kernel);
    for (const Kind& kind : kKinds) {
      if (!absl::StrContains(kernel, kind.part)) continue;
      what = kind.what;
      break;
    }
    kinds[what] += count;
  }
  return kinds;
}

class CudaAuditTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    Audit audit(sm);
    has_float8_ = audit.DeviceComputesFloat8();
    const QwenImageDiT model{QwenImageDiTConfig()};
    for (const int64_t side : {1024, 256}) {
      passes_[side] = audit.Pass(model, {side, /*tokens=*/5});
      if (has_float8_) float8_passes_[side] = audit.Pass(model, {side, /*tokens=*/5, at::kFloat8_e4m3fn});
    }
    QwenImageDiTConfig config;
    config.num_layers = 2;
    const QwenImageDiT low(config);
    for (const int64_t side : {64, 256, 512, 1024, 2048}) {
      for (const int64_t tokens : {1, 77, 1024}) {
        low_passes_[{side, tokens}] = audit.Pass(low, {side, tokens});
        if (has_float8_) low_float8_passes_[{side, tokens}] = audit.Pass(low, {side, tokens, at::kFloat8_e4m3fn});
      }
    }
    for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
      for (const int64_t batch : {1, 3}) other_passes_.push_back(audit.Pass(low, {512, 77, dtype, batch}));
    }
    // (Inputs are the first, by kernels of ours.)
    for (const int64_t launch : {20, 60}) without_memory_.push_back(audit.PassWithoutMemory(low, {256, 5}, launch));
    multiplies_float8_ = audit.MultipliesFloat8();
  }

  static inline std::map<int64_t, Figures> passes_;  // By pixels a side.
  static inline std::vector<Figures> other_passes_;  // Of two blocks, in other dtypes, of several.
  static inline std::map<std::pair<int64_t, int64_t>, Figures> low_passes_;  // Of two blocks, by that and tokens.
  // The same in float8.
  static inline std::map<int64_t, Figures> float8_passes_;
  static inline std::map<std::pair<int64_t, int64_t>, Figures> low_float8_passes_;
  static inline std::vector<absl::Status> without_memory_;  // Of passes in which LibTorch's launches find none.
  static inline bool has_float8_ = false;                   // As the device tells.
  static inline bool multiplies_float8_ = false;            // As LibTorch does.
};

TEST_F(CudaAuditTest, NothingIsAskedThatNobodyAnswers) {
  for (const auto& [side, pass] : passes_) {
    EXPECT_THAT(pass.refused, IsEmpty()) << side;
    EXPECT_THAT(ByKind(pass.launches), Each(Pair(Not(StartsWith("something else")), Gt(0)))) << side;
  }
}

TEST_F(CudaAuditTest, OperationsGoToTheDevicesStreamAndTheExecutorWaitsForNothing) {
  for (const auto& [side, pass] : passes_) {
    EXPECT_EQ(pass.launches_elsewhere, 0) << side;
    EXPECT_EQ(pass.synchronizations, 0) << side;
    for (const Gemm& gemm : pass.gemms) ASSERT_EQ(gemm.stream, pass.stream) << side;
  }
}

TEST_F(CudaAuditTest, LaunchesOfAPassOf60Blocks) {
  EXPECT_THAT(ByKind(passes_[1024].launches),
              ElementsAre(Pair("activations", 241), Pair("attention", 60), Pair("casts of inputs and output", 7),
                          Pair("norms", 480), Pair("products of elements", 1196), Pair("rotations", 360),
                          Pair("sums of elements", 718)));
  EXPECT_THAT(ByKind(passes_[256].launches),
              ElementsAre(Pair("activations", 121), Pair("attention", 120), Pair("casts of inputs and output", 5),
                          Pair("norms", 480), Pair("products of elements", 956), Pair("rotations", 360),
                          Pair("sums of elements", 718)));
  for (const auto& [side, pass] : passes_) EXPECT_EQ(pass.gemms.size(), kProducts) << side;
}

TEST_F(CudaAuditTest, APassTakesNoMoreThanIsReservedAndLittleLess) {
  for (const auto& [of, pass] : low_passes_) {
    SCOPED_TRACE(absl::StrCat(of.first, " pixels a side, ", of.second, " tokens"));
    EXPECT_LE(pass.region_bytes, pass.predicted_bytes);
    // Of few tokens attention splits the keys, on some GPU more than on this.
    if (of.first >= 1024) {
      EXPECT_GE(pass.region_bytes, pass.predicted_bytes * 98 / 100);
    }
  }
  for (const Figures& pass : other_passes_) EXPECT_LE(pass.region_bytes, pass.predicted_bytes);
}

TEST_F(CudaAuditTest, APassTakesNothingOfTheDeviceAndKeepsNothing) {
  for (const auto* passes : {&low_passes_, &low_float8_passes_}) {
    for (const auto& [of, pass] : *passes) {
      EXPECT_EQ(pass.taken_of_the_device, 0) << of.first << " pixels a side, " << of.second << " tokens";
      EXPECT_EQ(pass.kept_bytes, 0) << of.first << " pixels a side, " << of.second << " tokens";
    }
  }
  for (const auto& [of, pass] : low_float8_passes_) {
    EXPECT_LE(pass.region_bytes, pass.predicted_bytes) << of.first << " pixels a side, " << of.second << " tokens";
  }
}

TEST_F(CudaAuditTest, WhereALaunchFindsNoMemoryThePassEndsWithResourceExhausted) {
  EXPECT_THAT(without_memory_, SizeIs(2));
  EXPECT_THAT(without_memory_, Each(StatusIs(absl::StatusCode::kResourceExhausted, "no memory left for an operation")));
}

TEST_F(CudaAuditTest, MemoryOfAPass) {
  for (const auto& [side, pass] : passes_) EXPECT_EQ(pass.runtime_bytes, sm < 90 ? 10 << 20 : 32 << 20) << side;
  EXPECT_EQ(passes_[1024].peak_bytes, 161610240);
  EXPECT_EQ(passes_[1024].region_bytes, 187275264);
  EXPECT_EQ(passes_[1024].predicted_bytes, 187341824);
  EXPECT_EQ(passes_[256].peak_bytes, 14720952);
  EXPECT_EQ(passes_[256].region_bytes, 19255296);
  EXPECT_EQ(passes_[256].predicted_bytes, 19321856);
}

// The same product may be computed otherwise where memory is aligned otherwise.
TEST_F(CudaAuditTest, ProductsAreOfMemoryAlignedTo256Bytes) {
  for (const auto& [side, pass] : passes_) {
    for (const Gemm& gemm : pass.gemms) {
      SCOPED_TRACE(absl::StrCat(side, ": ", gemm.m, " x ", gemm.n, " x ", gemm.k));
      ASSERT_THAT(gemm.alignments, Each(256));
      ASSERT_THAT(gemm.types, Each(14)) << "CUDA_R_16BF";
      ASSERT_EQ(gemm.workspace_bytes, 1 << 20);
      ASSERT_EQ(gemm.reduction_schemes, 0u) << "none that splits a sum";
    }
  }
}

// Of products in float8 LibTorch tells no alignment, which is to say this one.
TEST_F(CudaAuditTest, EveryMatrixBeginsAtAMultipleOf256Bytes) {
  for (const auto* passes : {&passes_, &float8_passes_}) {
    for (const auto& [side, pass] : *passes) {
      for (const Gemm& gemm : pass.gemms) {
        for (const uint64_t address : gemm.begin_at) ASSERT_EQ(address % 256, 0) << side;
      }
    }
  }
}

TEST_F(CudaAuditTest, LibTorchMultipliesFloat8WhereTheDeviceSaysThatItCan) {
  EXPECT_EQ(multiplies_float8_, has_float8_);
  EXPECT_EQ(has_float8_, sm >= 89);
}

// By cuBLASLt on 9.0, elsewhere by kernels of LibTorch's own.
TEST_F(CudaAuditTest, InFloat8EachProductIsOneLaunchBesideThatOfItsOperands) {
  for (const auto& [side, pass] : float8_passes_) {
    std::map<std::string, int64_t> expected = ByKind(passes_[side].launches);
    expected["operands of float8 products"] = kProducts;
    if (sm != 90) expected["float8 products"] = kProducts;
    EXPECT_EQ(ByKind(pass.launches), expected) << side;
    EXPECT_THAT(pass.refused, IsEmpty()) << side;
    EXPECT_EQ(pass.launches_elsewhere, 0) << side;
    EXPECT_EQ(pass.synchronizations, 0) << side;
    ASSERT_EQ(pass.gemms.size(), sm == 90 ? kProducts : 0) << side;
    for (const Gemm& gemm : pass.gemms) {
      ASSERT_THAT(gemm.types, ElementsAre(28, 28, 14)) << "CUDA_R_8F_E4M3 twice, CUDA_R_16BF";
      ASSERT_THAT(gemm.scale_modes, Each(3)) << "CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F";
      ASSERT_EQ(gemm.stream, pass.stream);
      ASSERT_NE(gemm.reduction_schemes, 0u) << "LibTorch leaves it to cuBLASLt whether a sum is split";
    }
  }
}

}  // namespace
}  // namespace ditserve::cuda_audit

// usage: cuda_audit_test [--sm=90]
int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    absl::string_view value = argv[i];
    if (!absl::ConsumePrefix(&value, "--sm=") || !absl::SimpleAtoi(value, &ditserve::cuda_audit::sm)) return 2;
  }
  return RUN_ALL_TESTS();
}
