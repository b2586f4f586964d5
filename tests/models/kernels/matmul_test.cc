#include "models/kernels/matmul.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/devices/cast.h"
#include "models/seeded_values.h"
#include "tests/models/kernels/isa_name.h"

namespace ditserve {
namespace {

std::vector<float> Values(const std::string& name, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  FillSeeded(3, name, 0, count, 0.0f, 1.0f, values.data());
  return values;
}

// `values` in `dtype`, at an address that is aligned to nothing.
class Encoded {
 public:
  Encoded(const std::vector<float>& values, DType dtype) : bytes_(values.size() * SizeOf(dtype) + 1) {
    Cast(values.data(), DType::kFloat32, {}, bytes_.data() + 1, dtype, static_cast<int64_t>(values.size()));
    decoded_.resize(values.size());
    Cast(data(), dtype, {}, decoded_.data(), DType::kFloat32, static_cast<int64_t>(values.size()));
  }
  const std::byte* data() const { return bytes_.data() + 1; }
  const std::vector<float>& decoded() const { return decoded_; }

 private:
  std::vector<std::byte> bytes_;
  std::vector<float> decoded_;
};

struct Shape {
  int64_t rows, out, in;
};

// One product, with gaps between the rows of x and y.
class Product {
 public:
  Product(const Shape& shape, DType dtype, bool has_bias = true)
      : shape_(shape),
        dtype_(dtype),
        has_bias_(has_bias),
        x_stride_(shape.in + 3),
        y_stride_(shape.out + 5),
        x_(Values("x", shape.rows * x_stride_)),
        weight_(Values("weight", shape.out * shape.in), dtype),
        bias_(Values("bias", shape.out), dtype) {}

  std::vector<float>& x() { return x_; }

  // Rows [begin, end) of y, without gaps, of factors that end at `cuts` and at `end`. What is in the gaps must stay.
  std::vector<float> Compute(Isa isa, int64_t begin, int64_t end, std::vector<int64_t> cuts = {}) const {
    constexpr float kGap = 12345;
    std::vector<float> y(static_cast<size_t>((end - begin) * y_stride_), kGap);
    const LinearParameters linear = {weight_.data(), has_bias_ ? bias_.data() : nullptr, dtype_, shape_.out, shape_.in};
    std::vector<FloatFactor> factors;
    cuts.push_back(end);
    for (int64_t row = begin; const int64_t cut : cuts) {
      factors.push_back(
          {{x_.data() + row * x_stride_, x_stride_, cut - row}, y.data() + (row - begin) * y_stride_, y_stride_});
      row = cut;
    }
    MultiplyFloat32(factors, linear, isa);
    std::vector<float> dense;
    for (int64_t r = 0; r < end - begin; ++r) {
      for (int64_t c = 0; c < y_stride_; ++c) {
        const float value = y[static_cast<size_t>(r * y_stride_ + c)];
        if (c < shape_.out) {
          dense.push_back(value);
        } else {
          EXPECT_EQ(value, kGap);
        }
      }
    }
    return dense;
  }
  std::vector<float> Compute(Isa isa) const { return Compute(isa, 0, shape_.rows); }

  void ExpectIsRight(const std::vector<float>& y) const {
    const double tolerance = 1e-6 * std::sqrt(static_cast<double>(shape_.in)) + 1e-6;
    for (int64_t r = 0; r < shape_.rows; ++r) {
      for (int64_t c = 0; c < shape_.out; ++c) {
        double sum = has_bias_ ? bias_.decoded()[static_cast<size_t>(c)] : 0;
        double magnitude = std::abs(sum);
        for (int64_t k = 0; k < shape_.in; ++k) {
          const double term = static_cast<double>(x_[static_cast<size_t>(r * x_stride_ + k)]) *
                              weight_.decoded()[static_cast<size_t>(c * shape_.in + k)];
          sum += term;
          magnitude += std::abs(term);
        }
        ASSERT_NEAR(y[static_cast<size_t>(r * shape_.out + c)], sum, tolerance * (1 + magnitude)) << r << ", " << c;
      }
    }
  }

 private:
  const Shape shape_;
  const DType dtype_;
  const bool has_bias_;
  const int64_t x_stride_, y_stride_;
  std::vector<float> x_;
  const Encoded weight_, bias_;
};

class MatmulTest : public ::testing::TestWithParam<Isa> {};

TEST_P(MatmulTest, IsRightForEveryNumberOfRows) {
  for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 25, 31, 77, 95, 96, 97, 103, 107, 257}) {
    const Product product({rows, 70, 50}, DType::kBFloat16);
    SCOPED_TRACE(rows);
    product.ExpectIsRight(product.Compute(GetParam()));
  }
}

TEST_P(MatmulTest, IsRightForEveryDType) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3}) {
    for (const int64_t rows : {int64_t{3}, MatmulFewRows(GetParam())}) {
      const Product product({rows, 65, 450}, dtype);
      SCOPED_TRACE(Name(dtype));
      product.ExpectIsRight(product.Compute(GetParam()));
    }
  }
}

TEST_P(MatmulTest, IsRightForSizesThatFillNoBlock) {
  for (const auto& [out, in] : {std::tuple(1, 1), std::tuple(1, 300), std::tuple(33, 1), std::tuple(31, 15),
                                std::tuple(64, 257), std::tuple(1100, 19), std::tuple(413, 800), std::tuple(3, 8200)}) {
    for (const int64_t rows : {int64_t{2}, MatmulFewRows(GetParam()) + 1}) {
      for (const DType dtype : {DType::kFloat8E4M3, DType::kFloat32}) {
        const Product product({rows, out, in}, dtype);
        SCOPED_TRACE(absl::StrCat(rows, " ", out, " ", in, " ", Name(dtype)));
        product.ExpectIsRight(product.Compute(GetParam()));
      }
    }
  }
}

TEST_P(MatmulTest, NeedsNoBias) {
  for (const int64_t rows : {int64_t{1}, MatmulFewRows(GetParam())}) {
    const Product product({rows, 40, 40}, DType::kFloat32, /*has_bias=*/false);
    product.ExpectIsRight(product.Compute(GetParam()));
  }
}

// Few rows and many, none, and more than are multiplied together; on threads that share rows and on some that do not.
TEST_P(MatmulTest, AFactorDoesNotDependOnTheOthers) {
  const int threads = at::get_num_threads();
  const int64_t few = MatmulFewRows(GetParam());
  const std::vector<int64_t> ends = {1, 1 + few, 1 + few, 150 + few, 152 + few, 451 + few, 451 + 2 * few, 1600, 1790};
  for (const auto& [out, in] : {std::tuple(100, 1100), std::tuple(1700, 50), std::tuple(70, 9000)}) {
    const Product product({ends.back(), out, in}, DType::kBFloat16);
    for (const int team : {1, 2, 4}) {
      at::set_num_threads(team);
      const std::vector<float> together =
          product.Compute(GetParam(), 0, ends.back(), std::vector(ends.begin(), ends.end() - 1));
      at::set_num_threads(threads);
      int64_t begin = 0;
      for (const int64_t end : ends) {
        const std::vector<float> alone = product.Compute(GetParam(), begin, end);
        const auto part = together.begin() + begin * out;
        EXPECT_EQ(alone, std::vector(part, part + (end - begin) * out))
            << begin << " of " << out << ", " << team << " threads";
        begin = end;
      }
    }
  }
}

TEST_P(MatmulTest, ARowDoesNotDependOnTheOthers) {
  const int64_t few = MatmulFewRows(GetParam());
  for (const auto& [rows, parts] :
       {std::tuple(few - 1, std::vector{std::tuple(0, 1), std::tuple(2, 7), std::tuple(9, 22)}),
        std::tuple(few + 150, std::vector{std::tuple(0, 100), std::tuple(5, 140), std::tuple(31, 174)})}) {
    const Product product({rows, 100, 5000}, DType::kBFloat16);
    const std::vector<float> all = product.Compute(GetParam());
    for (const auto& [begin, end] : parts) {
      const std::vector<float> some = product.Compute(GetParam(), begin, end);
      EXPECT_EQ(std::memcmp(some.data(), all.data() + begin * 100, some.size() * sizeof(float)), 0) << begin;
    }
  }
}

TEST_P(MatmulTest, DoesNotDependOnTheNumberOfThreads) {
  const int threads = at::get_num_threads();
  for (const auto& [rows, out] : {std::tuple(2, 200), std::tuple(300, 200), std::tuple(600, 33)}) {
    const Product product({rows, out, 500}, DType::kBFloat16);
    at::set_num_threads(1);
    const std::vector<float> alone = product.Compute(GetParam());
    for (const int team : {2, 3, 4}) {
      at::set_num_threads(team);
      EXPECT_EQ(product.Compute(GetParam()), alone) << team << " threads";
    }
    at::set_num_threads(threads);
  }
}

TEST_P(MatmulTest, PassesOnWhatIsNotFinite) {
  for (const int64_t rows : {int64_t{4}, MatmulFewRows(GetParam())}) {
    Product product({rows, 40, 40}, DType::kBFloat16);
    product.x()[2] = std::numeric_limits<float>::quiet_NaN();
    product.x()[43 + 1] = std::numeric_limits<float>::infinity();
    const std::vector<float> y = product.Compute(GetParam());
    EXPECT_TRUE(std::isnan(y[0]));
    EXPECT_TRUE(std::isinf(y[40]));
    EXPECT_TRUE(std::isfinite(y[80]));
  }
}

// Times 1: each element is a column of its own.
TEST_P(MatmulTest, DecodesEveryElementOfTheNarrowDTypes) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3}) {
    const int64_t count = int64_t{1} << (8 * SizeOf(dtype));
    std::vector<std::byte> elements(static_cast<size_t>(count * SizeOf(dtype)));
    for (int64_t i = 0; i < count; ++i) std::memcpy(elements.data() + i * SizeOf(dtype), &i, SizeOf(dtype));
    std::vector<float> expected(static_cast<size_t>(count));
    Cast(elements.data(), dtype, {}, expected.data(), DType::kFloat32, count);
    for (const int64_t rows : {int64_t{1}, MatmulFewRows(GetParam())}) {
      const std::vector<float> ones(static_cast<size_t>(rows), 1.0f);
      std::vector<float> found(static_cast<size_t>(rows * count));
      MultiplyFloat32({{{ones.data(), 1, rows}, found.data(), count}}, {elements.data(), nullptr, dtype, count, 1},
                      GetParam());
      for (size_t i = 0; i < expected.size(); ++i) {
        if (std::isnan(expected[i])) {
          EXPECT_TRUE(std::isnan(found[i])) << Name(dtype) << " " << i;
        } else {
          ASSERT_EQ(found[i], expected[i]) << Name(dtype) << " " << i;
        }
      }
    }
  }
}

// The elements of a word are told apart: a weight of [1, count] times the unit matrix is itself.
TEST_P(MatmulTest, KeepsTheOrderOfElements) {
  const int64_t count = MatmulFewRows(GetParam());
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3}) {
    const Encoded weight(Values("weight", count), dtype);
    std::vector<float> unit(static_cast<size_t>(count * count)), y(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) unit[static_cast<size_t>(i * (count + 1))] = 1;
    MultiplyFloat32({{{unit.data(), count, count}, y.data(), 1}}, {weight.data(), nullptr, dtype, 1, count},
                    GetParam());
    EXPECT_EQ(y, weight.decoded()) << Name(dtype);
  }
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, MatmulTest, ::testing::ValuesIn(Isas()), NameOfIsa);

}  // namespace
}  // namespace ditserve
