#ifndef DITSERVE_TESTS_TESTING_FAKE_DEVICE_H_
#define DITSERVE_TESTS_TESTING_FAKE_DEVICE_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/any_invocable.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "core/base/status_macros.h"
#include "core/devices/cast.h"
#include "core/devices/device.h"
#include "core/devices/host_addresses.h"

namespace ditserve {

class LateMachine;

// Bytes that an operation reads.
struct ByteRange {
  const void* begin;
  int64_t bytes;
};

// A device with memory of its own (which a test can look into), that can be told to run out of it. It does everything
// at once. Memory that is given twice, taken twice, or not given back ends the test.
class FakeDevice : public Device {
 public:
  explicit FakeDevice(bool computes_in_host_memory = false, Memory memory = Memory::kDevice)
      : name_(absl::StrCat("fake:", DeviceOf(memory))), memory_(memory), in_host_memory_(computes_in_host_memory) {}
  ~FakeDevice() override {
    if (ranges_ != 0 || !granules_.empty()) Abort("memory or addresses were not given back");
  }

  // The n-th allocation from now on fails, once; 0: none.
  void FailAllocation(int n) { fail_in_ = n; }
  // It gives no more of the memory than `bytes`.
  void GiveAtMost(Memory memory, int64_t bytes) { most_given_[IsHost(memory) ? 0 : 1] = bytes; }
  // The n-th copy from now on fails, once; 0: none.
  void FailCopy(int n) { fail_copy_in_ = n; }

  // An operation of the executor, named for what is reported, that reads memory when it comes to it. `work` is given
  // where it finds each of the ranges.
  using Work = absl::AnyInvocable<void(const std::vector<const std::byte*>& found)>;
  virtual void Compute(const std::string& /*name*/, const std::vector<ByteRange>& reads, Work work) {
    std::vector<const std::byte*> found;
    for (const ByteRange& range : reads) found.push_back(static_cast<const std::byte*>(range.begin));
    work(found);
  }
  // Where its work is done; null: at once.
  virtual LateMachine* machine() { return nullptr; }

  // Looks on each time before memory counts as taken.
  void BeforeEachTaking(std::function<void()> look) { look_ = std::move(look); }

  // Of addresses that have memory, now and at most.
  int64_t allocated_bytes(Memory memory) const ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    return allocated_[IsHost(memory) ? 0 : 1];
  }
  int64_t most_allocated_bytes(Memory memory) const ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    return most_[IsHost(memory) ? 0 : 1];
  }

  const std::string& name() const override { return name_; }
  Memory memory() const override { return memory_; }
  bool computes_in_host_memory() const override { return in_host_memory_; }
  absl::Status CanCompute(DType) const override { return absl::OkStatus(); }
  DType ArithmeticDType(DType computation) const override { return computation; }
  DType OperandDType(DType arithmetic, DType) const override { return arithmetic; }

  absl::StatusOr<EventPtr> Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) override {
    const absl::Status passed = WaitForAll(after);
    if (!passed.ok() || conversion.count == 0) return passed.ok() ? absl::StatusOr<EventPtr>(nullptr) : passed;
    DITSERVE_RETURN_IF_ERROR(CheckLink());
    const auto& [source, through, target, count] = conversion;
    Cast(source.data, source.dtype, through, target.data, target.dtype, count);
    return nullptr;
  }
  absl::Status BeginOperations() override { return absl::OkStatus(); }
  absl::Status ComputeAfter(const EventPtr&) override { return absl::OkStatus(); }
  absl::Status Operate(const Conversion& conversion) override { return FakeDevice::Enqueue(conversion, {}).status(); }
  absl::StatusOr<EventPtr> RecordOperations() override { return nullptr; }
  absl::StatusOr<EventPtr> MarkOperations() override { return nullptr; }

  absl::StatusOr<std::byte*> ReserveAddresses(Memory, int64_t bytes) override {
    CountRange(1);
    return ReserveHostAddresses(bytes);
  }
  void ReleaseAddresses(Memory, std::byte* begin, int64_t bytes) override {
    CountRange(-1);
    ReleaseHostAddresses(begin, bytes);
  }
  absl::Status Commit(Memory memory, std::byte* begin, int64_t bytes) override {
    DITSERVE_RETURN_IF_ERROR(CheckCommit(memory, bytes));
    Mark(memory, begin, bytes, true);
    return CommitHostMemory(begin, bytes);
  }
  void Decommit(Memory memory, std::byte* begin, int64_t bytes) override {
    DecommitHostMemory(begin, bytes);
    Mark(memory, begin, bytes, false);
  }
  absl::Status Move(Memory memory, std::byte* from, std::byte* to, int64_t bytes) override {
    Mark(memory, from, bytes, false);
    if (absl::Status status = CheckMemory(); !status.ok()) {
      DecommitHostMemory(from, bytes);
      return status;
    }
    Mark(memory, to, bytes, true);
    return MoveHostMemory(from, to, bytes);
  }
  int64_t granule_bytes(Memory) const override { return kHostPageBytes; }

  absl::StatusOr<MemoryStatus> MemoryStatusOf(Memory) const override {
    return MemoryStatus{int64_t{1} << 40, available_bytes_, own_bytes_};
  }
  void SetAvailable(int64_t bytes) { available_bytes_ = bytes; }
  // Set before anybody asks.
  void SetOwn(int64_t bytes) { own_bytes_ = bytes; }
  absl::Status Health() override { return absl::OkStatus(); }

 protected:
  // The errors that a test asked for.
  absl::Status CheckLink() {
    const bool fails = fail_copy_in_ > 0 && --fail_copy_in_ == 0;
    return fails ? absl::UnavailableError("the fake device's link failed") : absl::OkStatus();
  }
  absl::Status CheckMemory() {
    const bool fails = fail_in_ > 0 && --fail_in_ == 0;
    return fails ? absl::ResourceExhaustedError("the fake device has no memory left") : absl::OkStatus();
  }

  absl::Status CheckCommit(Memory memory, int64_t bytes) {
    DITSERVE_RETURN_IF_ERROR(CheckMemory());
    if (allocated_bytes(memory) + bytes <= most_given_[IsHost(memory) ? 0 : 1]) return absl::OkStatus();
    return absl::ResourceExhaustedError("the fake device has no memory left");
  }
  // Ranges of addresses that were given, less those that were released.
  void CountRange(int change) { ranges_ += change; }

  [[noreturn]] static void Abort(const char* what) {
    std::fprintf(stderr, "FakeDevice: %s\n", what);
    std::abort();
  }

  // Keeps the books of which granules have memory, each once.
  void Mark(Memory memory, const std::byte* begin, int64_t bytes, bool has) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (bytes <= 0 || bytes % kHostPageBytes != 0) Abort("not a multiple of the granule");
    if (!has && look_) look_();
    const absl::MutexLock lock(&mutex_);
    for (int64_t at = 0; at < bytes; at += kHostPageBytes) {
      const bool changed = has ? granules_.insert(begin + at).second : granules_.erase(begin + at) == 1;
      if (!changed) Abort(has ? "memory for addresses that have it" : "memory taken from addresses without it");
    }
    const size_t index = IsHost(memory) ? 0 : 1;
    allocated_[index] += has ? bytes : -bytes;
    most_[index] = std::max(most_[index], allocated_[index]);
  }

 private:
  const std::string name_;
  const Memory memory_;
  const bool in_host_memory_;
  std::atomic<int64_t> available_bytes_ = int64_t{1} << 40;
  std::optional<int64_t> own_bytes_;
  std::array<std::atomic<int64_t>, 2> most_given_ = {int64_t{1} << 40, int64_t{1} << 40};  // The host's first.
  std::atomic<int> fail_in_ = 0;
  std::atomic<int> fail_copy_in_ = 0;
  std::atomic<int> ranges_ = 0;
  std::function<void()> look_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_set<const std::byte*> granules_ ABSL_GUARDED_BY(mutex_);  // That have memory.
  std::array<int64_t, 2> allocated_ ABSL_GUARDED_BY(mutex_) = {};           // The host's first.
  std::array<int64_t, 2> most_ ABSL_GUARDED_BY(mutex_) = {};
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_FAKE_DEVICE_H_
