#include "core/devices/cpu_device.h"

#include <sys/mman.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "core/devices/cast.h"

namespace ditserve {
namespace {

constexpr int64_t kPageBytes = 4096;
constexpr int64_t kHugePageBytes = 2 << 20;

int64_t RoundUp(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

// Without these, a bfloat16 matrix product runs at a tenth of float32's speed.
bool HasFastBFloat16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");  // Every processor with AMX has it too.
#else
  return false;
#endif
}

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(bool native_bfloat16) : native_bfloat16_(native_bfloat16) {}

  const std::string& name() const override { return name_; }
  bool computes_in_host_memory() const override { return true; }

  DType ArithmeticDType(DType computation) const override {
    return computation == DType::kBFloat16 && native_bfloat16_ ? DType::kBFloat16 : DType::kFloat32;
  }

  DType OperandDType(DType arithmetic, DType values) const override {
    return arithmetic == DType::kFloat32 ? values : arithmetic;
  }

  absl::StatusOr<std::byte*> Allocate(Memory, int64_t bytes) override {
    // Aligned to huge pages: writing a buffer for the first time then faults once in 2 MiB, not once in 4 KiB.
    const int64_t alignment = bytes >= kHugePageBytes ? kHugePageBytes : kPageBytes;
    const int64_t mapped = RoundUp(bytes, kPageBytes) + alignment - kPageBytes;
    void* const mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) {
      return absl::ResourceExhaustedError(absl::StrCat("the system refuses ", bytes, " bytes of memory"));
    }
    auto* const begin = static_cast<std::byte*>(mapping);
    std::byte* const data =
        begin + (RoundUp(reinterpret_cast<intptr_t>(begin), alignment) - reinterpret_cast<intptr_t>(begin));
    const int64_t kept = RoundUp(bytes, kPageBytes);
    if (data > begin) munmap(begin, data - begin);
    if (data + kept < begin + mapped) munmap(data + kept, begin + mapped - data - kept);
    madvise(data, kept, MADV_HUGEPAGE);  // A hint: without huge pages the memory works the same.
    return data;
  }

  void Free(Memory, std::byte* data, int64_t bytes) override { munmap(data, RoundUp(bytes, kPageBytes)); }

  absl::Status Convert(const ElementSpan& source, absl::Span<const DType> through, const ElementSpan& target,
                       int64_t count) override {
    Cast(source.data, source.dtype, through, target.data, target.dtype, count);
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<DeviceEvent>> RecordOperations() override { return nullptr; }

  absl::StatusOr<MemoryStatus> MemoryStatusOf(Memory) const override { return ReadHostMemory(); }

 private:
  const std::string name_ = "cpu";
  const bool native_bfloat16_;
};

}  // namespace

std::unique_ptr<Device> MakeCpuDevice(CpuBFloat16 bfloat16) {
  const bool native = bfloat16 == CpuBFloat16::kNative || (bfloat16 == CpuBFloat16::kAuto && HasFastBFloat16());
  return std::make_unique<CpuDevice>(native);
}

}  // namespace ditserve
