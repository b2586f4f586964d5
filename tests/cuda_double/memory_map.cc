#include "tests/cuda_double/memory_map.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/cuda_double/cuda_double.h"

namespace ditserve::cuda_double {
namespace {

constexpr int64_t kAddressBytes = int64_t{256} << 30;
constexpr int64_t kPageBytes = 4096;
constexpr int64_t kReservedAlignment = 2 << 20;

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

std::byte* MapFresh(int64_t bytes, int protection) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* const mapped = mmap(nullptr, static_cast<size_t>(bytes), protection, flags, -1, 0);
  if (mapped == MAP_FAILED) {
    std::perror("the CUDA double: mmap");
    std::abort();
  }
  return static_cast<std::byte*>(mapped);
}

}  // namespace

int64_t Parts::Take(int64_t bytes, int64_t alignment) {
  for (auto [offset, size] : free_) {
    const int64_t begin = RoundUp(offset, alignment);
    if (begin + bytes > offset + size) continue;
    free_.erase(offset);
    if (begin > offset) free_.emplace(offset, begin - offset);
    if (begin + bytes < offset + size) free_.emplace(begin + bytes, offset + size - begin - bytes);
    return begin;
  }
  return -1;
}

void Parts::Put(int64_t offset, int64_t bytes) {
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && next->first == offset + bytes) {
    bytes += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin() && std::prev(next)->first + std::prev(next)->second == offset) {
    std::prev(next)->second += bytes;
  } else {
    free_.emplace(offset, bytes);
  }
}

class MemoryMap::Physical {
 public:
  Physical(MemoryMap& map, int of_device, int64_t bytes)
      : device(of_device), size_bytes(bytes), used_(map.used_bytes_) {
    (*used_)[device] += bytes;
  }
  ~Physical() { (*used_)[device] -= size_bytes; }
  Physical(const Physical&) = delete;
  Physical& operator=(const Physical&) = delete;

  const int device;
  const int64_t size_bytes;
  bool mapped = false;
  std::vector<std::byte> contents;  // While it is not mapped; none: it is full of poison.

 private:
  const std::shared_ptr<std::map<int, int64_t>> used_;
};

MemoryMap::MemoryMap()
    : addresses_(MapFresh(kAddressBytes, PROT_NONE)),
      contents_(MapFresh(kAddressBytes, PROT_READ | PROT_WRITE)),
      fresh_(MapFresh(kAddressBytes / kPageBytes, PROT_READ | PROT_WRITE)),
      address_parts_(kAddressBytes),
      used_bytes_(std::make_shared<std::map<int, int64_t>>()) {
  address_parts_.Take(kReservedAlignment, 1);  // What is just before an allocation is a device address too.
}

MemoryMap::PhysicalPtr MemoryMap::Create(int device, int64_t bytes) {
  return std::make_shared<Physical>(*this, device, bytes);
}

int64_t MemoryMap::used_bytes(int device) const {
  const auto used = used_bytes_->find(device);
  return used == used_bytes_->end() ? 0 : used->second;
}

uint64_t MemoryMap::AddHandle(PhysicalPtr memory) {
  handles_.emplace(next_handle_, std::move(memory));
  return next_handle_++;
}

MemoryMap::PhysicalPtr MemoryMap::HandleAt(uint64_t handle) const {
  const auto held = handles_.find(handle);
  return held == handles_.end() ? nullptr : held->second;
}

std::byte* MemoryMap::Reserve(int64_t bytes) {
  const int64_t offset = address_parts_.Take(RoundUp(bytes, kPageBytes), kReservedAlignment);
  if (offset < 0) return nullptr;
  reserved_.emplace(addresses_ + offset, bytes);
  return addresses_ + offset;
}

bool MemoryMap::Unreserve(std::byte* begin, int64_t bytes) {
  const auto range = reserved_.find(begin);
  if (range == reserved_.end() || range->second != bytes) return false;
  const auto mapping = mappings_.lower_bound(begin);
  if (mapping != mappings_.end() && mapping->first < begin + bytes) return false;
  reserved_.erase(range);
  const int64_t of_pages = RoundUp(bytes, kPageBytes);
  madvise(contents_ + Offset(begin), static_cast<size_t>(of_pages), MADV_DONTNEED);  // The next one may lie elsewhere.
  address_parts_.Put(Offset(begin), of_pages);
  return true;
}

bool MemoryMap::Map(std::byte* begin, PhysicalPtr memory, int64_t bytes) {
  const auto range = reserved_.upper_bound(begin);
  if (range == reserved_.begin() || begin + bytes > std::prev(range)->first + std::prev(range)->second) return false;
  const auto next = mappings_.lower_bound(begin);
  if (next != mappings_.end() && next->first < begin + bytes) return false;
  if (Holding(begin) != mappings_.end() || Offset(begin) % kPageBytes != 0 || memory->mapped) return false;
  std::copy(memory->contents.begin(), memory->contents.end(), contents_ + Offset(begin));
  const std::byte fresh{memory->contents.empty()};
  std::fill_n(fresh_ + Offset(begin) / kPageBytes, RoundUp(bytes, kPageBytes) / kPageBytes, fresh);
  memory->contents.clear();
  memory->mapped = true;
  mappings_.emplace_hint(next, begin, Mapping{bytes, std::move(memory)});
  return true;
}

MemoryMap::PhysicalPtr MemoryMap::MappedAt(const std::byte* begin) const {
  const auto mapping = mappings_.find(begin);
  return mapping == mappings_.end() ? nullptr : mapping->second.memory;
}

bool MemoryMap::Unmap(std::byte* begin, int64_t bytes) {
  const std::byte* const end = begin + bytes;
  const std::byte* at = begin;
  for (auto mapping = mappings_.find(begin); at < end; ++mapping) {
    if (mapping == mappings_.end() || mapping->first != at) return false;
    at += mapping->second.bytes;
  }
  if (at != end) return false;
  for (auto mapping = mappings_.find(begin); mapping != mappings_.end() && mapping->first < end;) {
    const std::byte* const first = mapping->first;
    const int64_t size = mapping->second.bytes;
    const PhysicalPtr memory = std::move(mapping->second.memory);
    mapping = mappings_.erase(mapping);
    memory->mapped = false;
    if (memory.use_count() == 1) continue;
    const std::byte* const found = Find(first, size);
    memory->contents.assign(found, found + size);
  }
  return true;
}

bool MemoryMap::GiveAccess(std::byte* begin, int64_t bytes, int device) {
  if (Locate(begin, bytes).kind != Kind::kDevice) return false;
  for (auto mapping = mappings_.find(begin); mapping != mappings_.end() && mapping->first < begin + bytes; ++mapping) {
    mapping->second.access |= 1u << device;
  }
  return true;
}

std::byte* MemoryMap::Allocate(int device, int64_t bytes) {
  std::byte* const begin = Reserve(bytes);
  if (begin == nullptr || !Map(begin, Create(device, bytes), bytes)) return nullptr;
  mappings_.at(begin).allocated = true;
  mappings_.at(begin).access = 1u << device;
  return begin;
}

int64_t MemoryMap::Free(std::byte* begin) {
  const auto mapping = mappings_.find(begin);
  if (mapping == mappings_.end() || !mapping->second.allocated) return -1;
  const int64_t bytes = mapping->second.bytes;
  Unmap(begin, bytes);
  Unreserve(begin, bytes);
  return bytes;
}

bool MemoryMap::Register(std::byte* begin, int64_t bytes, uint32_t access) {
  const auto next = registered_.lower_bound(begin);
  if (next != registered_.end() && next->first < begin + bytes) return false;
  if (next != registered_.begin() && std::prev(next)->first + std::prev(next)->second.bytes > begin) return false;
  registered_.emplace(begin, Registration{bytes, access});
  return true;
}

int64_t MemoryMap::Unregister(std::byte* begin) {
  const auto range = registered_.find(begin);
  if (range == registered_.end()) return -1;
  const int64_t bytes = range->second.bytes;
  registered_.erase(range);
  return bytes;
}

std::map<const std::byte*, MemoryMap::Mapping>::const_iterator MemoryMap::Holding(const std::byte* address) const {
  const auto next = mappings_.upper_bound(address);
  if (next == mappings_.begin()) return mappings_.end();
  const auto mapping = std::prev(next);
  return address < mapping->first + mapping->second.bytes ? mapping : mappings_.end();
}

MemoryMap::Place MemoryMap::Locate(const void* begin, int64_t bytes) const {
  const std::byte* at = static_cast<const std::byte*>(begin);
  const std::byte* const end = at + bytes;
  if (!IsDeviceAddress(begin)) {
    auto range = registered_.upper_bound(at);
    if (range != registered_.begin() && std::prev(range)->first + std::prev(range)->second.bytes > at) --range;
    if (range == registered_.end() || range->first >= end) return {Kind::kPageable};
    Place place = {Kind::kPinned, -1, ~0u};
    for (; at < end; ++range, ++place.pieces) {
      if (range == registered_.end() || range->first > at) return {Kind::kNone, -1, 0, 0, "are registered in part"};
      place.access &= range->second.access;
      at = range->first + range->second.bytes;
    }
    return place;
  }
  Place place = {Kind::kDevice, -1, ~0u};
  for (auto mapping = Holding(at); at < end; ++mapping) {
    if (mapping == mappings_.end() || mapping->first > at) {
      return {Kind::kNone, -1, 0, 0, "lie outside of what was allocated"};
    }
    place.device = mapping->second.memory->device;
    place.access &= mapping->second.access;
    at = mapping->first + mapping->second.bytes;
  }
  return place;
}

std::byte* MemoryMap::Find(const void* begin, int64_t bytes) {
  if (!IsDeviceAddress(begin)) return static_cast<std::byte*>(const_cast<void*>(begin));
  const int64_t offset = Offset(begin);
  for (int64_t page = offset / kPageBytes; page * kPageBytes < offset + bytes; ++page) {
    if (std::exchange(fresh_[page], std::byte{0}) == std::byte{0}) continue;
    std::fill_n(contents_ + page * kPageBytes, kPageBytes, std::byte{kPoison});
  }
  return contents_ + offset;
}

void MemoryMap::Spoil(const void* begin, int64_t bytes) {
  if (IsDeviceAddress(begin)) std::fill_n(contents_ + Offset(begin), bytes, std::byte{kPoison});
}

bool MemoryMap::IsDeviceAddress(const void* address) const {
  return address >= addresses_ && address < addresses_ + kAddressBytes;
}

std::vector<std::string> MemoryMap::Describe() const {
  std::vector<std::string> lines;
  for (const auto& [begin, mapping] : mappings_) {
    lines.push_back(absl::StrCat(mapping.bytes, " bytes of device ", mapping.memory->device, "'s memory"));
  }
  for (const auto& [begin, bytes] : reserved_) {
    if (Holding(begin) == mappings_.end()) lines.push_back(absl::StrCat(bytes, " bytes of device addresses"));
  }
  for (const auto& [begin, registration] : registered_) {
    lines.push_back(absl::StrCat(registration.bytes, " bytes of registered host memory"));
  }
  for (const auto& [handle, memory] : handles_) {
    lines.push_back(absl::StrCat("a handle of ", memory->size_bytes, " bytes of device ", memory->device, "'s memory"));
  }
  return lines;
}

void MemoryMap::Clear() {
  while (!mappings_.empty()) {
    Unmap(addresses_ + Offset(mappings_.begin()->first), mappings_.begin()->second.bytes);
  }
  while (!reserved_.empty()) Unreserve(addresses_ + Offset(reserved_.begin()->first), reserved_.begin()->second);
  registered_.clear();
  handles_.clear();
}

}  // namespace ditserve::cuda_double
