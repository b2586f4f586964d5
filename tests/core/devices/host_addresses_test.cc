#include "core/devices/host_addresses.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>

namespace ditserve {
namespace {

constexpr int64_t kPage = kHostPageBytes;

int64_t Mappings() {
  std::ifstream maps("/proc/self/maps");
  return std::count(std::istreambuf_iterator<char>(maps), {}, '\n');
}

class HostAddressesTest : public ::testing::Test {
 protected:
  ~HostAddressesTest() override { ReleaseHostAddresses(begin_, kBytes); }

  static constexpr int64_t kBytes = 256 * kPage;
  std::byte* const begin_ = *ReserveHostAddresses(kBytes);
};

TEST_F(HostAddressesTest, MovedMemoryIsTheSameMemory) {
  ASSERT_TRUE(CommitHostMemory(begin_, 3 * kPage).ok());
  begin_[2 * kPage] = std::byte{7};
  ASSERT_TRUE(MoveHostMemory(begin_ + kPage, begin_ + 100 * kPage, 2 * kPage).ok());
  EXPECT_EQ(begin_[101 * kPage], std::byte{7});
}

TEST_F(HostAddressesTest, WhatWasMovedFromIsNotAccessible) {
  ASSERT_TRUE(CommitHostMemory(begin_, kPage).ok());
  ASSERT_TRUE(MoveHostMemory(begin_, begin_ + kPage, kPage).ok());
  EXPECT_DEATH(begin_[0] = std::byte{1}, "");
}

TEST_F(HostAddressesTest, WhatWasTakenIsGivenAgainWithoutItsContents) {
  ASSERT_TRUE(CommitHostMemory(begin_, kPage).ok());
  begin_[0] = std::byte{7};
  DecommitHostMemory(begin_, kPage);
  ASSERT_TRUE(CommitHostMemory(begin_, kPage).ok());
  EXPECT_EQ(begin_[0], std::byte{0});
}

// The kernel allows a process some tens of thousands.
TEST_F(HostAddressesTest, MovingLeavesNoMappingsBehind) {
  const int64_t before = Mappings();
  for (int64_t i = 0; i < 128; ++i) {  // Backwards: neighbours come from places that are none.
    ASSERT_TRUE(CommitHostMemory(begin_ + i * kPage, kPage).ok());
    begin_[i * kPage] = std::byte{1};
    ASSERT_TRUE(MoveHostMemory(begin_ + i * kPage, begin_ + (255 - i) * kPage, kPage).ok());
  }
  EXPECT_GT(Mappings(), before + 100);
  for (int64_t i = 128; i < 256; ++i) DecommitHostMemory(begin_ + i * kPage, kPage);
  EXPECT_LE(Mappings(), before + 2);
}

}  // namespace
}  // namespace ditserve
