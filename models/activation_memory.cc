#include "models/activation_memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>
#include <utility>

#include "absl/status/statusor.h"
#include "core/devices/host_addresses.h"

namespace ditserve {
namespace {

// From a huge page on. Malloc would take as much more of the last page, and keep some of what it is given back.
constexpr size_t kMappedBytes = 2 << 20;

// What is held beside as much as was in use at one time: so small passes, of which it is much, need no fresh memory.
constexpr int64_t kSpareBytes = 8 << 20;

// What the thread's tensors live in; null: LibTorch's own memory.
thread_local const std::shared_ptr<ActivationMemory>* current = nullptr;

// Stands before a tensor's data, because LibTorch frees some of its memory by its address alone.
struct alignas(ActivationMemory::kAlignment) Header {
  std::shared_ptr<ActivationMemory> memory;  // Null: LibTorch's own.
  size_t bytes;
};
static_assert(sizeof(Header) == ActivationMemory::kAlignment);

// Of a block that is mapped by itself: its header, its data, and the rest of the last page.
int64_t MappingBytes(size_t bytes) {
  const auto needed = static_cast<int64_t>(sizeof(Header) + bytes);
  return (needed + kHostPageBytes - 1) / kHostPageBytes * kHostPageBytes;
}

std::byte* Map(int64_t bytes) {
  const absl::StatusOr<std::byte*> block = ReserveHostAddresses(bytes);
  if (!block.ok()) throw std::bad_alloc();
  if (CommitHostMemory(*block, bytes).ok()) return *block;
  ReleaseHostAddresses(*block, bytes);
  throw std::bad_alloc();
}

// Uninitialized memory for a header and, behind it, `bytes` of data; returns where the data begin.
std::byte* AllocateFresh(size_t bytes) {
  if (bytes >= kMappedBytes) return Map(MappingBytes(bytes)) + sizeof(Header);
  void* block = nullptr;
  if (posix_memalign(&block, ActivationMemory::kAlignment, sizeof(Header) + bytes) != 0) throw std::bad_alloc();
  return static_cast<std::byte*>(block) + sizeof(Header);
}

void FreeFresh(std::byte* data, size_t bytes) {
  std::byte* const block = data - sizeof(Header);
  bytes >= kMappedBytes ? ReleaseHostAddresses(block, MappingBytes(bytes)) : std::free(block);
}

void FreeData(void* pointer) {
  if (pointer == nullptr) return;
  auto* const data = static_cast<std::byte*>(pointer);
  auto* const header = reinterpret_cast<Header*>(data - sizeof(Header));
  const std::shared_ptr<ActivationMemory> memory = std::move(header->memory);
  const size_t bytes = header->bytes;
  header->~Header();
  if (memory == nullptr) return FreeFresh(data, bytes);
  memory->Free(data, bytes);
}

class ScopedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &FreeData, device};
    std::byte* const data = current == nullptr ? AllocateFresh(bytes) : (*current)->Allocate(bytes);
    new (data - sizeof(Header)) Header{current == nullptr ? nullptr : *current, bytes};
    return {data, data, &FreeData, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &FreeData; }
  void copy_data(void* target, const void* source, size_t bytes) const override { std::memcpy(target, source, bytes); }
};

}  // namespace

// LibTorch finds the allocator in a variable of its own, so there is one for the process.
void ActivationMemory::InstallAllocator() {
  static ScopedAllocator allocator;
  static const bool installed = [] {
    c10::SetCPUAllocator(&allocator, /*priority=*/1);
    return true;
  }();
  static_cast<void>(installed);
}

ActivationMemory::Scope::Scope(const std::shared_ptr<ActivationMemory>& memory)
    : outer_(std::exchange(current, &memory)) {}

ActivationMemory::Scope::~Scope() { current = outer_; }

ActivationMemory::~ActivationMemory() {
  const absl::MutexLock lock(&mutex_);
  ReleaseSpares(0);
}

std::byte* ActivationMemory::Allocate(size_t bytes) {
  const absl::MutexLock lock(&mutex_);
  const auto size = static_cast<int64_t>(bytes);
  if (size > limit_bytes_ - used_bytes_) {
    TORCH_CHECK_WITH(OutOfMemoryError, false, "activations of ", used_bytes_ + size, " bytes where ", limit_bytes_,
                     " were reserved");
  }
  const auto spare = spares_.find(bytes);
  std::byte* data = nullptr;
  if (spare != spares_.end()) {
    data = spare->second;
    spares_.erase(spare);
    spare_bytes_ -= size;
  } else {
    const int64_t held_bytes = std::min(std::max(peak_bytes_, used_bytes_ + size) + kSpareBytes, limit_bytes_);
    ReleaseSpares(held_bytes - used_bytes_ - size);
    data = AllocateFresh(bytes);
  }
  used_bytes_ += size;
  peak_bytes_ = std::max(peak_bytes_, used_bytes_);
  return data;
}

void ActivationMemory::Free(std::byte* data, size_t bytes) {
  const absl::MutexLock lock(&mutex_);
  used_bytes_ -= static_cast<int64_t>(bytes);
  spare_bytes_ += static_cast<int64_t>(bytes);
  spares_.emplace(bytes, data);
  if (closed_) ReleaseSpares(0);
}

void ActivationMemory::Close() {
  const absl::MutexLock lock(&mutex_);
  closed_ = true;
  ReleaseSpares(0);
}

int64_t ActivationMemory::peak_bytes() const {
  const absl::MutexLock lock(&mutex_);
  return peak_bytes_;
}

void ActivationMemory::ReleaseSpares(int64_t at_most_bytes) {
  while (spare_bytes_ > at_most_bytes) {
    const auto largest = std::prev(spares_.end());
    FreeFresh(largest->second, largest->first);
    spare_bytes_ -= static_cast<int64_t>(largest->first);
    spares_.erase(largest);
  }
}

}  // namespace ditserve
