#ifndef DITSERVE_TESTS_CUDA_DOUBLE_ROUND_TRIP_H_
#define DITSERVE_TESTS_CUDA_DOUBLE_ROUND_TRIP_H_

#include <c10/cuda/CUDAStream.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/status_macros.h"
#include "core/devices/device_module.h"
#include "tests/cuda_double/cuda_double.h"

namespace ditserve {

inline constexpr int64_t kGranule = 2 << 20;  // Of both memories.

inline std::unique_ptr<Device> MakeCuda(int index = 0) {
  std::string error;
  std::unique_ptr<Device> device(DitserveMakeDevice(index, DeviceMemory(index), &error));
  EXPECT_NE(device, nullptr) << error;
  return device;
}

// Addresses with memory, while it lives.
class Range {
 public:
  Range(Device& device, Memory memory, int64_t bytes) : device_(device), memory_(memory), bytes_(bytes) {
    absl::StatusOr<std::byte*> begin = device.ReserveAddresses(memory, bytes);
    status_ = begin.status();
    if (begin.ok()) begin_ = *begin, status_ = device.Commit(memory, begin_, bytes);
  }
  ~Range() {
    if (status_.ok()) device_.Decommit(memory_, begin_, bytes_);
    if (begin_ != nullptr) device_.ReleaseAddresses(memory_, begin_, bytes_);
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

  const absl::Status& status() const { return status_; }
  std::byte* data() const { return begin_; }
  ElementSpan Of(DType dtype, int64_t offset_bytes = 0) const { return {memory_, begin_ + offset_bytes, dtype}; }

 private:
  Device& device_;
  const Memory memory_;
  const int64_t bytes_;
  absl::Status status_;
  std::byte* begin_ = nullptr;
};

// More conversions than a device has slots for, which nothing orders but the slots.
inline void Burst(Device& device) {
  constexpr int64_t kConversions = 20, kCount = 1000, kApart = 4096;
  const Range host(device, Memory::kHost, kGranule), own(device, device.memory(), kGranule);
  Events events;
  for (int64_t i = 0; i < kConversions; ++i) {
    const absl::StatusOr<EventPtr> converted =
        device.Enqueue({host.Of(DType::kFloat32), {}, own.Of(DType::kBFloat16, i * kApart), kCount}, {});
    if (converted.ok()) events.push_back(*converted);
  }
  static_cast<void>(WaitForAll(events));
}

// Elements that go to a device and are rounded on the way, are read by an operation there, come back, and are widened
// on the host, each step after the event of the one before.
class RoundTrip {
 public:
  // `device` must outlive it.
  explicit RoundTrip(Device& device) : device_(device) {}

  // Returns once nothing is under way.
  absl::Status Run() {
    for (const Range* range : {&host_, &own_, &back_, &wide_}) DITSERVE_RETURN_IF_ERROR(range->status());
    const std::vector<uint16_t> ones(kCount, 0x3f80);
    std::memcpy(host_.data(), ones.data(), kCount * sizeof(uint16_t));
    cuda_double::Machine().HostWrites(host_.data(), kCount * 2, "the test");
    absl::Status status = Move();
    if (status.ok()) status = Operate();
    status.Update(WaitForAll(events_));
    if (status.ok()) status = events_.back()->TimeSince(*events_[events_.size() - 2]).status();
    calls_ = cuda_double::AllCalls();
    return status;
  }

  // Whether the values that came back are those that went.
  bool right() const { return right_; }
  // CUDA's calls until nothing was under way.
  const std::map<std::string, int64_t>& calls() const { return calls_; }

 private:
  static constexpr int64_t kCount = kGranule / 2 + 1000;  // Beyond a piece of registered memory.

  absl::Status Move() {
    constexpr DType kThrough = DType::kFloat16;
    DITSERVE_RETURN_IF_ERROR(Enqueue({host_.Of(DType::kBFloat16), {&kThrough, 1}, own_.Of(DType::kBFloat16), kCount}));
    DITSERVE_RETURN_IF_ERROR(Enqueue({own_.Of(DType::kBFloat16), {}, back_.Of(DType::kBFloat16), kCount}));
    DITSERVE_RETURN_IF_ERROR(Enqueue({back_.Of(DType::kBFloat16), {}, wide_.Of(DType::kFloat32), kCount}));
    cuda_double::Machine().HostReads(back_.data(), kCount * 2, "a conversion on the host");
    const auto* const values = reinterpret_cast<const float*>(wide_.data());
    right_ = std::all_of(values, values + kCount, [](float value) { return value == 1; });
    return absl::OkStatus();
  }
  absl::Status Enqueue(const Conversion& conversion) {
    DITSERVE_ASSIGN_OR_RETURN(EventPtr event, device_.Enqueue(conversion, {events_.back()}));
    events_.push_back(std::move(event));
    return absl::OkStatus();
  }
  absl::Status Operate() {
    DITSERVE_RETURN_IF_ERROR(device_.BeginOperations());
    DITSERVE_RETURN_IF_ERROR(device_.ComputeAfter(events_[1]));
    DITSERVE_ASSIGN_OR_RETURN(EventPtr begun, device_.MarkOperations());
    EXPECT_EQ(cuda_double::LaunchWork(
                  "an operation", {{{own_.data(), kCount * 2, false}}, nullptr},
                  c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(DeviceOf(device_.memory())))),
              cudaSuccess);
    DITSERVE_ASSIGN_OR_RETURN(EventPtr event, device_.RecordOperations());
    events_.push_back(std::move(event));
    events_.push_back(std::move(begun));
    DITSERVE_ASSIGN_OR_RETURN(events_.emplace_back(), device_.MarkOperations());
    return absl::OkStatus();
  }

  Device& device_;
  const Range host_{device_, Memory::kHost, 2 * kGranule}, own_{device_, device_.memory(), 2 * kGranule},
      back_{device_, Memory::kHost, 2 * kGranule}, wide_{device_, Memory::kHost, 4 * kGranule};
  Events events_ = {nullptr};
  bool right_ = false;
  std::map<std::string, int64_t> calls_;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_CUDA_DOUBLE_ROUND_TRIP_H_
