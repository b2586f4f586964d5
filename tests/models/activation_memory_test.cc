#include "models/activation_memory.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <thread>

#include "core/devices/host_memory.h"

namespace ditserve {
namespace {

constexpr int64_t kLimit = 1000;

class ActivationMemoryTest : public ::testing::Test {
 protected:
  ActivationMemoryTest() { ActivationMemory::InstallAllocator(); }
};

at::Tensor Bytes(int64_t bytes) { return at::empty({bytes}, at::kByte); }
at::Tensor Written(int64_t bytes) { return at::full({bytes}, 7, at::kByte); }

TEST_F(ActivationMemoryTest, CountsTheTensorsOfItsScopeAlone) {
  const auto memory = std::make_shared<ActivationMemory>(kLimit);
  const at::Tensor before = Bytes(5000);
  {
    const ActivationMemory::Scope scope(memory);
    const at::Tensor inside = Bytes(600);
    std::thread([] { Bytes(5000); }).join();
  }
  const at::Tensor after = Bytes(5000);
  EXPECT_EQ(memory->peak_bytes(), 600);
}

TEST_F(ActivationMemoryTest, RefusesWhatWasNotReserved) {
  const auto memory = std::make_shared<ActivationMemory>(kLimit);
  const ActivationMemory::Scope scope(memory);
  const at::Tensor held = Bytes(600);
  EXPECT_THROW(Bytes(401), c10::OutOfMemoryError);
  EXPECT_EQ(Bytes(400).numel(), 400);
  EXPECT_EQ(memory->peak_bytes(), kLimit);
}

TEST_F(ActivationMemoryTest, GivesTheSameMemoryAgain) {
  const auto memory = std::make_shared<ActivationMemory>(kLimit);
  const ActivationMemory::Scope scope(memory);
  const void* const first = Bytes(600).data_ptr();
  EXPECT_EQ(Bytes(600).data_ptr(), first);
}

TEST_F(ActivationMemoryTest, LetsGoOfSparesForOtherSizes) {
  const auto memory = std::make_shared<ActivationMemory>(kLimit);
  const ActivationMemory::Scope scope(memory);
  for (int64_t bytes = 600; bytes <= kLimit; bytes += 100) EXPECT_EQ(Bytes(bytes).numel(), bytes);
  EXPECT_EQ(memory->peak_bytes(), kLimit);
}

// What spares take is there as memory of the process is.
TEST_F(ActivationMemoryTest, HoldsLittleMoreThanWasInUseAtOneTime) {
  constexpr int64_t kMiB = 1 << 20;
  const auto memory = std::make_shared<ActivationMemory>(1000 * kMiB);
  const ActivationMemory::Scope scope(memory);
  const int64_t before = OwnHostMemoryBytes();
  for (const int64_t bytes : {40 * kMiB, 48 * kMiB, 44 * kMiB, 36 * kMiB}) Written(bytes);
  EXPECT_LE(OwnHostMemoryBytes() - before, (48 + 8 + 4) * kMiB);
}

// Malloc would keep of blocks of this size, once it has been given one back.
TEST_F(ActivationMemoryTest, WhatIsLetGoOfGoesBackToTheSystem) {
  constexpr int64_t kMiB = 1 << 20;
  const int64_t before = OwnHostMemoryBytes();
  for (int i = 0; i < 3; ++i) Written(20 * kMiB);
  EXPECT_LE(OwnHostMemoryBytes() - before, 4 * kMiB);
}

TEST_F(ActivationMemoryTest, LivesAsLongAsItsTensors) {
  auto memory = std::make_shared<ActivationMemory>(kLimit);
  at::Tensor survivor;
  {
    const ActivationMemory::Scope scope(memory);
    survivor = at::full({100}, 7, at::kByte);
  }
  memory.reset();
  std::thread([tensor = std::move(survivor)] { EXPECT_EQ(tensor[99].item<uint8_t>(), 7); }).join();
}

TEST_F(ActivationMemoryTest, ScopesNest) {
  const auto outer = std::make_shared<ActivationMemory>(kLimit);
  const auto inner = std::make_shared<ActivationMemory>(kLimit);
  const ActivationMemory::Scope scope(outer);
  {
    const ActivationMemory::Scope nested(inner);
    Bytes(100);
  }
  Bytes(200);
  EXPECT_EQ(inner->peak_bytes(), 100);
  EXPECT_EQ(outer->peak_bytes(), 200);
}

}  // namespace
}  // namespace ditserve
