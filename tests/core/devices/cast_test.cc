#include "core/devices/cast.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

#include "core/placement/precision.h"

namespace ditserve {
namespace {

constexpr std::array<DType, 4> kWeightDTypes = {DType::kFloat8E4M3, DType::kFloat16, DType::kBFloat16, DType::kFloat32};

using Bytes = std::vector<std::byte>;

void Put(Bytes& bytes, uint32_t bits, int64_t size) {
  for (int64_t i = 0; i < size; ++i) bytes.push_back(static_cast<std::byte>(bits >> (8 * i) & 0xff));
}

// Every pattern of `dtype`; of float32 those around every value that the others round to and every tie between two.
Bytes Patterns(DType dtype) {
  Bytes bytes;
  const int64_t size = SizeOf(dtype);
  if (size < 4) {
    for (uint32_t bits = 0; bits < 1u << (8 * size); ++bits) Put(bytes, bits, size);
    return bytes;
  }
  for (uint32_t high = 0; high < 0x10000; ++high) {
    for (uint32_t low = 0; low < 0x10000; low += 0x2000) {
      for (const uint32_t rest : {0x0u, 0x1u, 0xfffu, 0x1000u, 0x1001u, 0x1fffu}) {
        Put(bytes, high << 16 | low | rest, size);
      }
    }
  }
  return bytes;
}

Bytes CastAll(const Bytes& source, DType from, std::vector<DType> through, DType to) {
  const int64_t count = static_cast<int64_t>(source.size()) / SizeOf(from);
  Bytes target(static_cast<size_t>(count * SizeOf(to)));
  Cast(source.data(), from, through, target.data(), to, count);
  return target;
}

std::vector<float> Values(const Bytes& bytes, DType dtype) {
  std::vector<float> values(bytes.size() / static_cast<size_t>(SizeOf(dtype)));
  Cast(bytes.data(), dtype, {}, values.data(), DType::kFloat32, static_cast<int64_t>(values.size()));
  return values;
}

// As zlib.crc32.
uint32_t Crc32(const Bytes& bytes) {
  std::array<uint32_t, 256> table;
  for (uint32_t i = 0; i < 256; ++i) {
    table[i] = i;
    for (int bit = 0; bit < 8; ++bit) table[i] = (table[i] & 1u) != 0 ? 0xedb88320u ^ table[i] >> 1 : table[i] >> 1;
  }
  uint32_t crc = ~0u;
  for (const std::byte byte : bytes) crc = table[(crc ^ static_cast<uint32_t>(byte)) & 0xffu] ^ crc >> 8;
  return ~crc;
}

// The sums are of what PyTorch 2.13 makes of the same patterns: zlib.crc32(patterns.to(dtype).view(uint8).numpy()), one
// thread, AVX2; float32 to bfloat16 with ATEN_CPU_CAPABILITY=default, whose NaN is that of PyTorch's other conversions
// (0x7fc0; AVX2 and AVX-512 make 0xffff).
TEST(CastTest, GivesPyTorchsBitsForEveryPattern) {
  struct Case {
    DType from, to;
    uint32_t crc32;
  };
  constexpr Case kCases[] = {
      {DType::kFloat32, DType::kBFloat16, 0x2f79bd71},    {DType::kFloat32, DType::kFloat16, 0xc7a8eac2},
      {DType::kFloat32, DType::kFloat8E4M3, 0xa1221a86},  {DType::kBFloat16, DType::kFloat32, 0x093b1249},
      {DType::kBFloat16, DType::kFloat16, 0x6df63edd},    {DType::kBFloat16, DType::kFloat8E4M3, 0xb4ca6f38},
      {DType::kFloat16, DType::kFloat32, 0x4e646bca},     {DType::kFloat16, DType::kBFloat16, 0xb8f1205d},
      {DType::kFloat16, DType::kFloat8E4M3, 0x5067a7ac},  {DType::kFloat8E4M3, DType::kFloat32, 0x3e178a35},
      {DType::kFloat8E4M3, DType::kBFloat16, 0xaf9b24db}, {DType::kFloat8E4M3, DType::kFloat16, 0x5f655456},
  };
  for (const Case& c : kCases) {
    EXPECT_EQ(Crc32(CastAll(Patterns(c.from), c.from, {}, c.to)), c.crc32) << Name(c.from) << " to " << Name(c.to);
  }
}

TEST(CastTest, RoundsTiesToEvenAndOverflowsAsEachDTypeDoes) {
  const auto cast = [](float value, DType to) {
    uint16_t bits = 0;
    Cast(&value, DType::kFloat32, {}, &bits, to, 1);
    return bits;
  };
  EXPECT_EQ(cast(0x1.01p0f, DType::kBFloat16), 0x3f80);  // Between 1 and 1 + 2^-7: to the even one.
  EXPECT_EQ(cast(0x1.03p0f, DType::kBFloat16), 0x3f82);
  EXPECT_EQ(cast(0x1.ffffp127f, DType::kBFloat16), 0x7f80);
  EXPECT_EQ(cast(NAN, DType::kBFloat16), 0x7fc0);
  EXPECT_EQ(cast(65519.0f, DType::kFloat16), 0x7bff);
  EXPECT_EQ(cast(65520.0f, DType::kFloat16), 0x7c00);
  EXPECT_EQ(cast(0x1p-24f, DType::kFloat16), 0x0001);
  EXPECT_EQ(cast(0x1p-25f, DType::kFloat16), 0x0000);
  EXPECT_EQ(cast(-0x1.000002p-25f, DType::kFloat16), 0x8001);
  EXPECT_EQ(cast(464.0f, DType::kFloat8E4M3), 0x7e);
  EXPECT_EQ(cast(-1e9f, DType::kFloat8E4M3), 0xfe);
  EXPECT_EQ(cast(INFINITY, DType::kFloat8E4M3), 0x7e);
  EXPECT_EQ(cast(NAN, DType::kFloat8E4M3), 0x7f);
  EXPECT_EQ(cast(0x1p-10f, DType::kFloat8E4M3), 0x00);
  EXPECT_EQ(cast(0x1.8p-10f, DType::kFloat8E4M3), 0x01);
}

TEST(CastTest, SameDTypeKeepsEveryBit) {
  for (const DType dtype : kWeightDTypes) {
    const Bytes patterns = Patterns(dtype);
    EXPECT_EQ(CastAll(patterns, dtype, {}, dtype), patterns) << Name(dtype);
  }
}

TEST(CastTest, ChainIsOneCastAfterTheOther) {
  for (const DType from : {DType::kFloat8E4M3, DType::kFloat16, DType::kBFloat16}) {
    const Bytes source = Patterns(from);
    for (const DType first : kWeightDTypes) {
      for (const DType second : kWeightDTypes) {
        for (const DType to : kWeightDTypes) {
          const Bytes stepwise = CastAll(CastAll(CastAll(source, from, {}, first), first, {}, second), second, {}, to);
          EXPECT_EQ(CastAll(source, from, {first, second}, to), stepwise)
              << Name(from) << " > " << Name(first) << " > " << Name(second) << " > " << Name(to);
        }
      }
    }
  }
}

// What lets copies of equal precision be shared.
TEST(CastTest, ChainGivesTheValuesThatItsRoundingsAloneGive) {
  for (const DType from : {DType::kFloat8E4M3, DType::kFloat16, DType::kBFloat16}) {
    const Bytes source = Patterns(from);
    for (const DType first : kWeightDTypes) {
      for (const DType second : kWeightDTypes) {
        const Precision stored(from);
        const Precision later = stored.Through(first).Through(second);
        const std::vector<float> expected = Values(CastAll(source, from, {first}, second), second);
        const std::vector<float> values =
            Values(CastAll(source, from, stored.RoundingsTo(later), DType::kFloat32), DType::kFloat32);
        ASSERT_EQ(values.size(), expected.size());
        for (size_t i = 0; i < values.size(); ++i) {
          if (std::isnan(values[i]) && std::isnan(expected[i])) continue;
          ASSERT_EQ(values[i], expected[i]) << Name(from) << " > " << Name(first) << " > " << Name(second) << ", " << i;
        }
      }
    }
  }
}

TEST(CastTest, NeitherBufferNeedsAlignmentAndNothingElseIsWritten) {
  for (const DType from : kWeightDTypes) {
    for (const DType to : kWeightDTypes) {
      constexpr int64_t kCount = 133;
      Bytes source = Patterns(from);
      source.resize(static_cast<size_t>(kCount * SizeOf(from)));
      const Bytes expected = CastAll(source, from, {}, to);
      source.insert(source.begin(), std::byte{0});
      Bytes target(1 + expected.size() + 1, std::byte{0x5a});
      Cast(source.data() + 1, from, {}, target.data() + 1, to, kCount);
      EXPECT_EQ(Bytes(target.begin() + 1, target.end() - 1), expected) << Name(from) << " to " << Name(to);
      EXPECT_EQ(target.front(), std::byte{0x5a});
      EXPECT_EQ(target.back(), std::byte{0x5a});
    }
  }
}

TEST(CastTest, NothingIsAFineAmount) {
  Cast(nullptr, DType::kBFloat16, {}, nullptr, DType::kBFloat16, 0);
  Cast(nullptr, DType::kBFloat16, {}, nullptr, DType::kFloat32, 0);
  const DType through[] = {DType::kFloat8E4M3};
  Cast(nullptr, DType::kBFloat16, through, nullptr, DType::kFloat32, 0);
}

}  // namespace
}  // namespace ditserve
