#ifndef DITSERVE_TESTS_TESTING_FAKE_DEVICE_H_
#define DITSERVE_TESTS_TESTING_FAKE_DEVICE_H_

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>

#include "core/devices/cast.h"
#include "core/devices/device.h"

namespace ditserve {

// A device with memory of its own (which a test can look into), that can be told to run out of it.
class FakeDevice : public Device {
 public:
  explicit FakeDevice(bool computes_in_host_memory = false) : in_host_memory_(computes_in_host_memory) {}
  ~FakeDevice() override { AbortOnLeak(); }

  // The n-th allocation from now on fails, once; 0: none.
  void FailAllocation(int n) { fail_in_ = n; }
  // The n-th copy from now on fails, once; 0: none.
  void FailCopy(int n) { fail_copy_in_ = n; }

  int64_t allocated_bytes(Memory memory) const { return allocated_[Index(memory)]; }
  int64_t most_allocated_bytes(Memory memory) const { return most_[Index(memory)]; }

  const std::string& name() const override { return name_; }
  bool computes_in_host_memory() const override { return in_host_memory_; }
  DType ArithmeticDType(DType computation) const override { return computation; }
  DType OperandDType(DType arithmetic, DType) const override { return arithmetic; }

  absl::StatusOr<std::byte*> Allocate(Memory memory, int64_t bytes) override {
    if (fail_in_ > 0 && --fail_in_ == 0) return absl::ResourceExhaustedError("the fake device has no memory left");
    const auto index = Index(memory);
    const int64_t now = allocated_[index] += bytes;
    int64_t most = most_[index];
    while (most < now && !most_[index].compare_exchange_weak(most, now)) {
    }
    return static_cast<std::byte*>(std::aligned_alloc(4096, static_cast<size_t>((bytes + 4095) / 4096 * 4096)));
  }
  void Free(Memory memory, std::byte* data, int64_t bytes) override {
    allocated_[Index(memory)] -= bytes;
    std::free(data);
  }
  absl::Status Convert(const ElementSpan& source, absl::Span<const DType> through, const ElementSpan& target,
                       int64_t count) override {
    if (fail_copy_in_ > 0 && --fail_copy_in_ == 0) return absl::UnavailableError("the fake device's link failed");
    Cast(source.data, source.dtype, through, target.data, target.dtype, count);
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<DeviceEvent>> RecordOperations() override { return nullptr; }
  absl::StatusOr<MemoryStatus> MemoryStatusOf(Memory) const override {
    return MemoryStatus{int64_t{1} << 40, available_bytes_};
  }
  void SetAvailable(int64_t bytes) { available_bytes_ = bytes; }

 private:
  void AbortOnLeak() const {
    if (allocated_[0] != 0 || allocated_[1] != 0) std::abort();
  }

  const std::string name_ = "fake:0";
  const bool in_host_memory_;
  std::atomic<int64_t> available_bytes_ = int64_t{1} << 40;
  std::atomic<int> fail_in_ = 0;
  std::atomic<int> fail_copy_in_ = 0;
  std::atomic<int64_t> allocated_[2] = {0, 0};
  std::atomic<int64_t> most_[2] = {0, 0};
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_FAKE_DEVICE_H_
