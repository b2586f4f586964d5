#include "client/ditctl/npy.h"

#include <gtest/gtest.h>

#include <string>

#include "client/ditctl/tensors.h"
#include "tests/testing/status_matchers.h"

namespace ditserve::ditctl {
namespace {

// A version 1 file with this header and `data_bytes` of zeros.
std::string Npy(std::string header, size_t data_bytes) {
  header += '\n';
  return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(header.size() & 0xff) +
         static_cast<char>(header.size() >> 8) + header + std::string(data_bytes, '\0');
}

void ExpectRefused(const std::string& bytes, absl::string_view why) {
  EXPECT_THAT(ParseNpy(bytes), StatusIs(absl::StatusCode::kInvalidArgument, why));
}

TEST(NpyTest, ReadsWhatItWrites) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
    const v1::Tensor tensor = SeededTensor(0, "x", {2, 3}, dtype);
    const auto read = ParseNpy(ToNpy(tensor));
    ASSERT_THAT(read, IsOk());
    EXPECT_EQ(read->SerializeAsString(), tensor.SerializeAsString());
  }
}

TEST(NpyTest, WritesTheHeaderThatNumPyWrites) {
  const std::string bytes = ToNpy(SeededTensor(0, "x", {7}, DType::kFloat32));
  EXPECT_EQ(bytes.substr(0, 67),
            std::string("\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': "
                        "(7,), }",
                        67));
  EXPECT_EQ(bytes.size(), 128u + 7 * 4);
  EXPECT_EQ(bytes[127], '\n');
}

TEST(NpyTest, BFloat16BecomesFloat32) {
  const auto read = ParseNpy(ToNpy(SeededTensor(0, "x", {4}, DType::kBFloat16)));
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->dtype(), v1::DTYPE_FLOAT32);
}

TEST(NpyTest, TakesIntegersAndBooleans) {
  EXPECT_THAT(ParseNpy(Npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1, 5), }", 40)), IsOk());
  EXPECT_THAT(ParseNpy(Npy("{'descr': '|b1', 'fortran_order': False, 'shape': (5,), }", 5)), IsOk());
}

TEST(NpyTest, RefusesWhatItCannotRead) {
  ExpectRefused("", "magic");
  ExpectRefused("PK\x03\x04 not numpy at all", "magic");
  ExpectRefused(Npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", 8), "dtype '|O'");
  ExpectRefused(Npy("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", 4), "dtype '>f4'");
  ExpectRefused(Npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", 4), "plain numbers");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }", 16), "Fortran order");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, }", 16), "no shape");
  ExpectRefused(std::string("\x93NUMPY\x03\x00\x02\x00\x00\x00{}", 14), "version 3; expected 1 or 2");
}

TEST(NpyTest, RefusesAHeaderThatIsNotExactlyItsThreeKeys) {
  ExpectRefused(Npy("()", 0), "no dictionary");
  ExpectRefused(Npy("{", 0), "no string where one belongs");
  ExpectRefused(Npy("{'descr", 0), "no string where one belongs");
  ExpectRefused(Npy("{'descr'}", 0), "no value for descr");
  ExpectRefused(Npy("{'descr': '<f4'", 0), "breaks off in descr");
  ExpectRefused(Npy("{'descr': '<f4' 'shape': (1,)}", 4), "breaks off in descr");
  ExpectRefused(Npy("{'descr': '<f4', 'descr': '<f2', 'fortran_order': False, 'shape': (1,), }", 4), "descr twice");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", 4), "a key x");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), } ()", 4), "goes on behind");
  ExpectRefused(Npy("{'x': \"'descr': '<f4'\", 'fortran_order': False, 'shape': (1,), }", 4), "a key x");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,), }", 4), "Fortran order");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': [1], }", 4), "no tuple");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1", 4), "shape breaks off");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, , 2), }", 8), "positive lengths");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }", 0), "shape has 0");
}

TEST(NpyTest, TakesTheKeysInAnyOrder) {
  EXPECT_THAT(ParseNpy(Npy("{'shape':(2,3),'fortran_order':False,'descr':'<f2'}", 12)), IsOk());
}

TEST(NpyTest, TakesVersion2) {
  const std::string header = "{'descr': '|u1', 'fortran_order': False, 'shape': (), }\n";
  const std::string bytes =
      std::string("\x93NUMPY\x02\x00", 8) + static_cast<char>(header.size()) + std::string(3, '\0') + header + "x";
  const auto read = ParseNpy(bytes);
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->data(), "x");
}

TEST(NpyTest, StandsEveryChangedByteOfTheHeader) {
  const std::string whole = ToNpy(SeededTensor(0, "x", {4, 4}, DType::kFloat32));
  for (size_t i = 0; i < 128; ++i) {
    for (int value = 0; value < 256; ++value) {
      std::string changed = whole;
      changed[i] = static_cast<char>(value);
      const auto read = ParseNpy(changed);
      if (!read.ok()) continue;
      EXPECT_EQ(BytesOf(*read), static_cast<int64_t>(read->data().size()));
    }
  }
}

TEST(NpyTest, RefusesLengthsThatDoNotAddUpBeforeItAllocates) {
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", 16), "holds 16 bytes");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", 16), "shape has -1");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 4), }", 16), "2^63");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1), }", 4), "up to 8");
  ExpectRefused(std::string("\x93NUMPY\x02\x00\xff\xff\xff\xff", 12), "longer than the file");
  ExpectRefused(std::string("\x93NUMPY\x02\x00\x00\x00\x02\x00", 12) + std::string(200 << 10, ' '),
                "longer than 65536 bytes");
}

TEST(NpyTest, RefusesEveryTruncation) {
  const std::string whole = ToNpy(SeededTensor(0, "x", {4, 4}, DType::kFloat32));
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(ParseNpy(whole.substr(0, size)).ok()) << size;
  }
}

}  // namespace
}  // namespace ditserve::ditctl
