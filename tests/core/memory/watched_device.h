#ifndef DITSERVE_TESTS_CORE_MEMORY_WATCHED_DEVICE_H_
#define DITSERVE_TESTS_CORE_MEMORY_WATCHED_DEVICE_H_

#include <gtest/gtest.h>

#include <cstdint>

#include "tests/testing/fake_device.h"

namespace ditserve {

// Sees at every moment that no more memory is given than was allowed.
class WatchedDevice : public FakeDevice {
 public:
  void Allow(int64_t bytes) { allowed_bytes_ = bytes; }
  absl::Status Commit(Memory memory, std::byte* begin, int64_t bytes) override {
    absl::Status status = FakeDevice::Commit(memory, begin, bytes);
    EXPECT_LE(allocated_bytes(memory), allowed_bytes_);
    return status;
  }

 private:
  int64_t allowed_bytes_ = INT64_MAX;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_CORE_MEMORY_WATCHED_DEVICE_H_
