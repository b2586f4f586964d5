#include "models/meta_run.h"

#include <c10/core/Allocator.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "core/memory/region.h"
#include "core/placement/profile.h"

namespace ditserve {
namespace {

// What MetaMemory counts. Meta tensors do not leave the thread that runs the model on them.
struct Count {
  bool active = false;
  at::DeviceType device = at::kCPU;
  int64_t live_bytes = 0;
  int64_t peak_bytes = 0;
  Region region;  // On CUDA.
};
thread_local Count count;
thread_local double computed = 0;

// A meta tensor has no data; its context remembers what was counted for it: its size or, on CUDA, its offset.
void FreeMeta(void* context) {
  const std::unique_ptr<int64_t> counted(static_cast<int64_t*>(context));
  if (count.device == at::kCUDA) {
    count.region.Give(*counted);
  } else {
    count.live_bytes -= *counted;
  }
}

int64_t Counted(int64_t bytes) {
  if (count.device == at::kCUDA) return *count.region.Take(bytes);
  count.live_bytes += bytes;
  count.peak_bytes = std::max(count.peak_bytes, count.live_bytes);
  return bytes;
}

class MetaAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(c10::DeviceType::Meta);
    if (!count.active || bytes == 0) return {nullptr, device};
    return {nullptr, new int64_t(Counted(static_cast<int64_t>(bytes))), &FreeMeta, device};
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
  count = {true, device};
}

MetaMemory::~MetaMemory() { count = {}; }

int64_t MetaMemory::peak_bytes() const {
  return count.device == at::kCUDA ? count.region.most_bytes() : count.peak_bytes;
}

}  // namespace ditserve
