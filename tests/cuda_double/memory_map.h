#ifndef DITSERVE_TESTS_CUDA_DOUBLE_MEMORY_MAP_H_
#define DITSERVE_TESTS_CUDA_DOUBLE_MEMORY_MAP_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ditserve::cuda_double {

// Parts of a line of bytes, the lowest first.
class Parts {
 public:
  explicit Parts(int64_t bytes) { free_.emplace(0, bytes); }
  int64_t Take(int64_t bytes, int64_t alignment);  // -1: there is none.
  void Put(int64_t offset, int64_t bytes);

 private:
  std::map<int64_t, int64_t> free_;  // Sizes by offset.
};

// The memory of devices, and which of the host's is registered.
//
// Device addresses are a range that nobody can access; what lies there is found at the same offset of a second range,
// as long as memory is mapped there: what is unmapped takes its contents with it, if anybody has a handle. No memory is
// mapped in two places at a time.
//
// Thread safety: thread-compatible.
class MemoryMap {
 public:
  MemoryMap();
  MemoryMap(const MemoryMap&) = delete;
  MemoryMap& operator=(const MemoryMap&) = delete;

  // Memory of a device, full of kPoison at first, whether or not it has addresses.
  class Physical;
  using PhysicalPtr = std::shared_ptr<Physical>;
  PhysicalPtr Create(int device, int64_t bytes);
  int64_t used_bytes(int device) const;

  // Handles of memory, never one twice. Null: there is no such handle.
  uint64_t AddHandle(PhysicalPtr memory);
  PhysicalPtr HandleAt(uint64_t handle) const;
  bool RemoveHandle(uint64_t handle) { return handles_.erase(handle) > 0; }

  // Addresses; null: there are none.
  std::byte* Reserve(int64_t bytes);
  // False: nothing was reserved so, or part of it has memory.
  bool Unreserve(std::byte* begin, int64_t bytes);

  // Gives reserved addresses memory, of which the first `bytes` may be accessed; false: they have some, or are not
  // reserved, or the memory is mapped elsewhere.
  bool Map(std::byte* begin, PhysicalPtr memory, int64_t bytes);
  // The memory of the mapping that begins there; null: none does.
  PhysicalPtr MappedAt(const std::byte* begin) const;
  // Of one mapping or several; false, and nothing is done: they are no whole ones.
  bool Unmap(std::byte* begin, int64_t bytes);
  // Lets a device access mappings; false: not all of it is mapped.
  bool GiveAccess(std::byte* begin, int64_t bytes, int device);

  // Memory and addresses in one, exactly so many bytes; null: there is none.
  std::byte* Allocate(int device, int64_t bytes);
  // The bytes it had; -1: nothing was allocated there.
  int64_t Free(std::byte* begin);

  // Host memory, and whose kernels reach it, a bit each. False: part of it is registered already; nothing was
  // registered there.
  bool Register(std::byte* begin, int64_t bytes, uint32_t access);
  int64_t Unregister(std::byte* begin);  // The bytes it had; -1: none.

  enum class Kind : uint8_t { kDevice, kPinned, kPageable, kNone };
  struct Place {
    Kind kind;
    int device = -1;      // Whose memory it is.
    uint32_t access = 0;  // Of devices that may access it, or whose kernels may where it is the host's, a bit each.
    int pieces = 0;       // Of host memory that was registered one by one.
    std::string wrong;    // Why it is none.
  };
  // What all of these bytes are.
  Place Locate(const void* begin, int64_t bytes) const;

  // Where the double finds what the host or a device would at this address. What has just been given is poisoned when
  // it is asked for.
  std::byte* Find(const void* begin, int64_t bytes);
  // Of addresses that were unmapped: what comes too late finds neither what was there nor what will be.
  void Spoil(const void* begin, int64_t bytes);
  bool IsDeviceAddress(const void* address) const;

  // What is there, a line each: allocations, mappings, reservations, registrations.
  std::vector<std::string> Describe() const;
  void Clear();

 private:
  struct Mapping {
    int64_t bytes;  // That may be accessed.
    PhysicalPtr memory;
    uint32_t access = 0;
    bool allocated = false;
  };
  int64_t Offset(const void* address) const { return static_cast<const std::byte*>(address) - addresses_; }
  // The mapping that holds the address, or mappings_.end().
  std::map<const std::byte*, Mapping>::const_iterator Holding(const std::byte* address) const;

  std::byte* const addresses_;
  std::byte* const contents_;
  std::byte* const fresh_;  // Of each page, whether it has yet to be poisoned.
  Parts address_parts_;
  const std::shared_ptr<std::map<int, int64_t>> used_bytes_;
  std::map<const std::byte*, int64_t> reserved_;
  std::map<const std::byte*, Mapping> mappings_;
  struct Registration {
    int64_t bytes;
    uint32_t access;
  };
  std::map<const std::byte*, Registration> registered_;
  std::map<uint64_t, PhysicalPtr> handles_;
  uint64_t next_handle_ = 1;
};

}  // namespace ditserve::cuda_double

#endif  // DITSERVE_TESTS_CUDA_DOUBLE_MEMORY_MAP_H_
