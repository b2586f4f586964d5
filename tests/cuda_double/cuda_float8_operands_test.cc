// The kernel that makes what float8 products take against core/devices/float8_rows.h and cast.h, bit for bit.
#include "core/devices/cuda_float8_operands.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "core/devices/cast.h"
#include "core/devices/float8_rows.h"
#include "tests/cuda_double/cuda_double.h"

namespace ditserve {
namespace {

// Memory that the kernel reaches, as the host does.
template <typename Element>
class Pinned {
 public:
  explicit Pinned(int64_t count) : count_(count) {
    EXPECT_EQ(cudaHostAlloc(reinterpret_cast<void**>(&data_), static_cast<size_t>(count) * sizeof(Element), 0),
              cudaSuccess);
    std::memset(static_cast<void*>(data_), cuda_double::kPoison, static_cast<size_t>(count) * sizeof(Element));
  }
  ~Pinned() { EXPECT_EQ(cudaFreeHost(data_), cudaSuccess); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

  Element* data() const { return data_; }
  std::vector<Element> All() const { return {data_, data_ + count_}; }

 private:
  const int64_t count_;
  Element* data_ = nullptr;
};

class CudaFloat8OperandsTest : public ::testing::Test {
 protected:
  CudaFloat8OperandsTest() { cuda_double::Begin({}); }
  ~CudaFloat8OperandsTest() override { EXPECT_THAT(cuda_double::Machine().TakeRaces(), ::testing::IsEmpty()); }

  // All values of bfloat16, in rows of `elements` of `stride`, the bias all values of float8 as often as there is
  // place.
  static void Check(int64_t elements, int64_t stride, int64_t columns) {
    const int64_t rows = 65536 / elements;
    const Pinned<uint16_t> x(rows * stride), wide_bias(columns);
    const Pinned<uint8_t> bias(columns), quantized(rows * elements);
    const Pinned<float> row_scales(rows), column_scales(columns);
    for (int64_t i = 0; i < rows * elements; ++i) {
      x.data()[i / elements * stride + i % elements] = static_cast<uint16_t>(i);
    }
    for (int64_t i = 0; i < columns; ++i) bias.data()[i] = static_cast<uint8_t>(i);
    ASSERT_EQ(CudaMakeFloat8Operands({x.data(), stride, rows, elements, bias.data(), columns, quantized.data(),
                                      row_scales.data(), column_scales.data(), wide_bias.data()},
                                     cudaStreamLegacy),
              cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(cudaStreamLegacy), cudaSuccess);

    std::vector<uint8_t> expected(static_cast<size_t>(rows * elements));
    for (int64_t row = 0; row < rows; ++row) {
      const float scale = QuantizeRow(x.data() + row * stride, elements, expected.data() + row * elements);
      ASSERT_EQ(std::memcmp(&row_scales.data()[row], &scale, sizeof scale), 0) << row;
    }
    EXPECT_EQ(quantized.All(), expected);
    EXPECT_EQ(column_scales.All(), std::vector<float>(static_cast<size_t>(columns), 1.0f));
    std::vector<uint16_t> expected_bias(static_cast<size_t>(columns));
    Cast(bias.data(), DType::kFloat8E4M3, {}, expected_bias.data(), DType::kBFloat16, columns);
    EXPECT_EQ(wide_bias.All(), expected_bias);
  }
};

TEST_F(CudaFloat8OperandsTest, EveryValueInRowsOfEverySizeIsTheCpusBitForBit) {
  for (const int64_t elements : {16, 64, 256, 4096, 8192}) {
    for (const int64_t columns : {16, 256, 272, 3072}) Check(elements, elements, columns);
  }
}

TEST_F(CudaFloat8OperandsTest, RowsMayLieApart) { Check(64, 96, 64); }

TEST_F(CudaFloat8OperandsTest, LaunchesOneKernel) {
  Check(4096, 4096, 3072);
  const std::vector<cuda_double::Launch> launches = cuda_double::Launches();
  ASSERT_EQ(launches.size(), 1u);
  EXPECT_THAT(launches[0].kernel, ::testing::HasSubstr("Float8OperandsKernel"));
  EXPECT_EQ(launches[0].grid.x, 16u + 3072 / 256) << "a block a row, and those of the columns";
}

}  // namespace
}  // namespace ditserve
