#include "models/meta_run.h"

#include <c10/core/Allocator.h>

#include <algorithm>
#include <utility>

#include "core/placement/profile.h"

namespace ditserve {
namespace {

// What MetaMemory counts. Meta tensors do not leave the thread that runs the model on them.
struct Count {
  bool active = false;
  at::DeviceType device = at::kCPU;
  int64_t live_bytes = 0;
  int64_t peak_bytes = 0;
};
thread_local Count count;
thread_local double computed = 0;

// A meta tensor has no data; its context remembers its size until it is freed.
void FreeMeta(void* context) {
  const std::unique_ptr<int64_t> bytes(static_cast<int64_t*>(context));
  count.live_bytes -= *bytes;
}

class MetaAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(c10::DeviceType::Meta);
    if (!count.active) return {nullptr, device};
    count.live_bytes += static_cast<int64_t>(bytes);
    count.peak_bytes = std::max(count.peak_bytes, count.live_bytes);
    return {nullptr, new int64_t(static_cast<int64_t>(bytes)), &FreeMeta, device};
  }
  void copy_data(void*, const void*, size_t) const override {}
};

// LibTorch finds the allocator of a device in a table of its own, so there is one for the process.
void InstallMetaAllocator() {
  static MetaAllocator allocator;
  static const bool installed = [] {
    c10::SetAllocator(c10::DeviceType::Meta, &allocator, /*priority=*/1);
    return true;
  }();
  static_cast<void>(installed);
}

}  // namespace

at::DeviceType DeviceTypeOf(const at::Tensor& x) { return x.is_meta() ? count.device : x.device().type(); }

void CountMetaWork(double multiply_adds) { computed += multiply_adds; }

std::vector<double> MetaLeaseSource::Work() const {
  std::vector<double> work = begun_;
  for (size_t i = 0; i < work.size(); ++i) work[i] = (i + 1 < work.size() ? begun_[i + 1] : computed) - begun_[i];
  return work;
}

void MetaLeaseSource::Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) {
  order_.push_back(module);
  begun_.push_back(computed);
  const ModuleSpec& spec = modules_[module];
  LeasedTensors tensors(spec.parameters.size(), LeasedTensor{nullptr, ComputationDType(spec, computation_)});
  std::move(done)(Lease(std::move(tensors), nullptr));
}

MetaMemory::MetaMemory(at::DeviceType device) {
  InstallMetaAllocator();
  count = {true, device, 0, 0};
}

MetaMemory::~MetaMemory() {
  count.active = false;
  count.device = at::kCPU;
}

int64_t MetaMemory::peak_bytes() const { return count.peak_bytes; }

}  // namespace ditserve
