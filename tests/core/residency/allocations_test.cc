// A lease of a copy that is there takes no memory: it is on the way of every module of every request.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

#include "absl/synchronization/notification.h"
#include "tests/testing/residency_fixture.h"

namespace {

thread_local int64_t allocations = 0;

}  // namespace

// The library's other forms call these. (g++ sees one inlined and the other not.)
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
void* operator new(size_t bytes) {
  ++allocations;
  if (void* const memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
// Of which the library's takes the one above, a sanitizer's does not.
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(bytes);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace ditserve {
namespace {

using Fixture = ResidencyFixture;

// A pass; returns the most allocations that acquiring and releasing one module took.
int64_t MostAllocations(Fixture& fixture) {
  int64_t most = 0;
  absl::Notification joined, ended;
  std::unique_ptr<Rider> rider =
      *fixture.manager->Join(fixture.model, Fixture::Resident(), {}, [&](const absl::Status& admitted) {
        EXPECT_TRUE(admitted.ok()) << admitted;
        joined.WaitForNotification();
        for (ModuleIndex module = 0; module < Fixture::kModules; ++module) {
          const int64_t before = allocations;
          bool granted = false;  // And released.
          rider->Acquire(module, [&granted](const absl::StatusOr<Lease>& lease) { granted = lease.ok(); });
          if (!granted) {
            ADD_FAILURE() << "module " << module << " is not there";
            break;
          }
          most = std::max(most, allocations - before);
        }
        ended.Notify();
      });
  joined.Notify();
  ended.WaitForNotification();
  return most;
}

TEST(AllocationsTest, ALeaseOfWhatIsThereTakesNone) {
  Fixture fixture(2 * Fixture::kModules);
  EXPECT_TRUE(Fixture::Pass(fixture, Fixture::Resident()).Wait().ok());
  fixture.Settle();
  MostAllocations(fixture);  // Vectors that are used again grow once.
  EXPECT_EQ(MostAllocations(fixture), 0);
  const int64_t before = allocations;
  { const auto one = std::make_unique<int>(1); }
  EXPECT_EQ(allocations - before, 1) << "they are counted";
}

}  // namespace
}  // namespace ditserve
