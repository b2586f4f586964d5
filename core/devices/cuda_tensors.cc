#include "core/devices/cuda_tensors.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <functional>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ditserve {
namespace {

namespace caching = c10::cuda::CUDACachingAllocator;

// The thread's.
thread_local std::shared_ptr<TensorMemory> current;

// LibTorch's interface to what it calls a caching allocator. Most of it is for training, graphs and other processes,
// which a server has none of: that is refused by name.
class CudaTensors final : public caching::CUDAAllocator {
 public:
  // LibTorch finds it in a variable of its own, and frees tensors when the process ends: there is one, for good.
  static CudaTensors& Get() {
    static auto* const tensors = new CudaTensors();
    return *tensors;
  }

  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(c10::kCUDA, c10::cuda::current_device());
    void* const data = raw_alloc(bytes);
    return {data, data, &Delete, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Delete; }

  void* raw_alloc(size_t bytes) override {
    if (bytes == 0) return nullptr;
    TORCH_CHECK(current != nullptr, "a tensor on a CUDA device is made outside a pass");
    std::byte* const data = current->Allocate(static_cast<int64_t>(bytes));
    TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "no ", bytes, " bytes are left of what was reserved");
    const std::scoped_lock lock(mutex_);
    owners_[data] = current;
    return data;
  }
  // A device's operations have one stream.
  void* raw_alloc_with_stream(size_t bytes, cudaStream_t) override { return raw_alloc(bytes); }
  void recordStream(const c10::DataPtr&, c10::cuda::CUDAStream) override {}

  void raw_delete(void* data) override {
    if (data == nullptr) return;
    std::shared_ptr<TensorMemory> owner;
    {
      const std::scoped_lock lock(mutex_);
      const auto found = owners_.extract(data);
      TORCH_INTERNAL_ASSERT(!found.empty());
      owner = found.mapped();
    }
    owner->Free(static_cast<std::byte*>(data));
  }

  cudaError_t memcpyAsync(void* target, int, const void* source, int, size_t bytes, cudaStream_t stream,
                          bool) override {
    return cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, stream);
  }

  std::string name() override { return "ditserve"; }
  void init(int) override {}
  bool initialized() override { return true; }
  bool isEnabled() const override { return true; }
  void emptyCache(c10::MempoolId_t) override {}  // There is none.

  void copy_data(void*, const void*, size_t) const override { Refuse("copy_data"); }
  double getMemoryFraction(c10::DeviceIndex) override { Refuse("getMemoryFraction"); }
  void setMemoryFraction(double, c10::DeviceIndex) override { Refuse("setMemoryFraction"); }
  std::vector<caching::StreamSegmentSize> getExpandableSegmentSizes(c10::DeviceIndex) override {
    Refuse("getExpandableSegmentSizes");
  }
  void enable(bool) override { Refuse("enable"); }
  void cacheInfo(c10::DeviceIndex, size_t*) override { Refuse("cacheInfo"); }
  void* getBaseAllocation(void*, size_t*) override { Refuse("getBaseAllocation"); }
  caching::SnapshotInfo snapshot(c10::MempoolId_t, bool) override { Refuse("snapshot"); }
  void beginAllocateToPool(c10::DeviceIndex, c10::MempoolId_t, std::function<bool(cudaStream_t)>) override {
    Refuse("beginAllocateToPool");
  }
  void endAllocateToPool(c10::DeviceIndex, c10::MempoolId_t) override { Refuse("endAllocateToPool"); }
  void releasePool(c10::DeviceIndex, c10::MempoolId_t) override { Refuse("releasePool"); }
  caching::ShareableHandle shareIpcHandle(void*) override { Refuse("shareIpcHandle"); }
  std::shared_ptr<void> getIpcDevPtr(std::string) override { Refuse("getIpcDevPtr"); }
  void recordHistory(bool, caching::CreateContextFn, size_t, caching::RecordContext, bool,
                     const std::vector<std::string>&) override {
    Refuse("recordHistory");
  }
  void attachOutOfMemoryObserver(caching::OutOfMemoryObserver) override { Refuse("attachOutOfMemoryObserver"); }
  void attachOomRejectionObserver(caching::OomRejectionObserver) override { Refuse("attachOomRejectionObserver"); }
  void attachAllocatorTraceTracker(caching::AllocatorTraceTracker) override { Refuse("attachAllocatorTraceTracker"); }
  void enablePeerAccess(c10::DeviceIndex, c10::DeviceIndex) override { Refuse("enablePeerAccess"); }
  std::shared_ptr<caching::AllocatorState> getCheckpointState(c10::DeviceIndex, c10::MempoolId_t) override {
    Refuse("getCheckpointState");
  }
  caching::CheckpointDelta setCheckpointPoolState(c10::DeviceIndex, std::shared_ptr<caching::AllocatorState>) override {
    Refuse("setCheckpointPoolState");
  }
  caching::DeviceStats getDeviceStats(c10::DeviceIndex) override { Refuse("getDeviceStats"); }
  void resetAccumulatedStats(c10::DeviceIndex) override { Refuse("resetAccumulatedStats"); }
  void resetPeakStats(c10::DeviceIndex) override { Refuse("resetPeakStats"); }

 private:
  static void Delete(void* data) { Get().raw_delete(data); }

  [[noreturn]] static void Refuse(const char* function) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, function, ": the server's memory for CUDA tensors has no such thing");
    std::abort();  // Not come to.
  }

  std::mutex mutex_;
  std::unordered_map<void*, std::shared_ptr<TensorMemory>> owners_;  // By where tensors are.
};

}  // namespace

void InstallCudaTensors() {
  static const bool installed = [] {
    CudaTensors* const tensors = &CudaTensors::Get();
    caching::allocator.store(tensors);
    c10::SetAllocator(c10::kCUDA, tensors, /*priority=*/1);
    return true;
  }();
  static_cast<void>(installed);
}

void KeepCudaTensorsIn(std::shared_ptr<TensorMemory> memory) { current = std::move(memory); }

}  // namespace ditserve
