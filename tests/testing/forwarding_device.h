#ifndef DITSERVE_TESTS_TESTING_FORWARDING_DEVICE_H_
#define DITSERVE_TESTS_TESTING_FORWARDING_DEVICE_H_

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "core/devices/device.h"

namespace ditserve {

// Another device, of which a subclass changes what it overrides.
class ForwardingDevice : public Device {
 public:
  explicit ForwardingDevice(std::unique_ptr<Device> device) : device_(std::move(device)) {}

  const std::string& name() const override { return device_->name(); }
  Memory memory() const override { return device_->memory(); }
  int64_t staging_bytes() const override { return device_->staging_bytes(); }
  int64_t runtime_bytes() const override { return device_->runtime_bytes(); }
  bool computes_in_host_memory() const override { return device_->computes_in_host_memory(); }
  absl::Status CanCompute(DType computation) const override { return device_->CanCompute(computation); }
  DType ArithmeticDType(DType computation) const override { return device_->ArithmeticDType(computation); }
  DType OperandDType(DType arithmetic, DType values) const override {
    return device_->OperandDType(arithmetic, values);
  }
  absl::StatusOr<EventPtr> Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) override {
    return device_->Enqueue(conversion, after);
  }
  std::optional<double> CopySpeed() override { return device_->CopySpeed(); }
  absl::Status BeginOperations() override { return device_->BeginOperations(); }
  void EndOperations() override { device_->EndOperations(); }
  absl::StatusOr<Events> Mark() override { return device_->Mark(); }
  void ComputeIn(std::shared_ptr<TensorMemory> memory) override { device_->ComputeIn(std::move(memory)); }
  absl::Status ComputeAfter(const EventPtr& event) override { return device_->ComputeAfter(event); }
  absl::Status Operate(const Conversion& conversion) override { return device_->Operate(conversion); }
  absl::StatusOr<EventPtr> RecordOperations() override { return device_->RecordOperations(); }
  absl::StatusOr<EventPtr> MarkOperations() override { return device_->MarkOperations(); }
  absl::StatusOr<std::byte*> ReserveAddresses(Memory memory, int64_t bytes) override {
    return device_->ReserveAddresses(memory, bytes);
  }
  void ReleaseAddresses(Memory memory, std::byte* begin, int64_t bytes) override {
    device_->ReleaseAddresses(memory, begin, bytes);
  }
  absl::Status Commit(Memory memory, std::byte* begin, int64_t bytes) override {
    return device_->Commit(memory, begin, bytes);
  }
  void Decommit(Memory memory, std::byte* begin, int64_t bytes) override { device_->Decommit(memory, begin, bytes); }
  absl::Status Move(Memory memory, std::byte* from, std::byte* to, int64_t bytes) override {
    return device_->Move(memory, from, to, bytes);
  }
  int64_t granule_bytes(Memory memory) const override { return device_->granule_bytes(memory); }
  absl::StatusOr<MemoryStatus> MemoryStatusOf(Memory memory) const override { return device_->MemoryStatusOf(memory); }
  int64_t unpinned_bytes() const override { return device_->unpinned_bytes(); }
  absl::Status Health() override { return device_->Health(); }

 private:
  const std::unique_ptr<Device> device_;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_FORWARDING_DEVICE_H_
