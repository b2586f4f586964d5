#include "core/devices/cpu_device.h"

#include <string>

#include "core/devices/cast.h"
#include "core/devices/host_addresses.h"

namespace ditserve {
namespace {

// Without these, a bfloat16 matrix product is no faster than float32's.
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
  Memory memory() const override { return Memory::kDevice; }
  bool computes_in_host_memory() const override { return true; }

  absl::Status CanCompute(DType) const override { return absl::OkStatus(); }
  DType ArithmeticDType(DType computation) const override {
    if (computation == DType::kFloat8E4M3) return computation;
    return computation == DType::kBFloat16 && native_bfloat16_ ? DType::kBFloat16 : DType::kFloat32;
  }

  DType OperandDType(DType arithmetic, DType values) const override {
    return arithmetic == DType::kFloat32 ? values : arithmetic;
  }

  absl::StatusOr<EventPtr> Enqueue(const Conversion& conversion, absl::Span<const EventPtr>) override {
    const auto& [source, through, target, count] = conversion;
    Cast(source.data, source.dtype, through, target.data, target.dtype, count);
    return nullptr;
  }
  absl::Status BeginOperations() override { return absl::OkStatus(); }
  absl::Status ComputeAfter(const EventPtr&) override { return absl::OkStatus(); }
  absl::Status Operate(const Conversion& conversion) override { return Enqueue(conversion, {}).status(); }
  absl::StatusOr<EventPtr> RecordOperations() override { return nullptr; }
  absl::StatusOr<EventPtr> MarkOperations() override { return nullptr; }

  absl::StatusOr<std::byte*> ReserveAddresses(Memory, int64_t bytes) override { return ReserveHostAddresses(bytes); }
  void ReleaseAddresses(Memory, std::byte* begin, int64_t bytes) override { ReleaseHostAddresses(begin, bytes); }
  absl::Status Commit(Memory, std::byte* begin, int64_t bytes) override { return CommitHostMemory(begin, bytes); }
  void Decommit(Memory, std::byte* begin, int64_t bytes) override { DecommitHostMemory(begin, bytes); }
  absl::Status Move(Memory, std::byte* from, std::byte* to, int64_t bytes) override {
    return MoveHostMemory(from, to, bytes);
  }
  int64_t granule_bytes(Memory) const override { return kHostPageBytes; }

  absl::StatusOr<MemoryStatus> MemoryStatusOf(Memory) const override { return ReadHostMemory(); }
  absl::Status Health() override { return absl::OkStatus(); }

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
