#ifndef DITSERVE_CORE_BASE_MEMORY_H_
#define DITSERVE_CORE_BASE_MEMORY_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace ditserve {

// Where a weight can be, slowest first: a kind, where a Memory is a place.
enum class Tier : uint8_t { kDisk, kHost, kDevice };

// "disk", "host", "device".
inline absl::string_view Name(Tier tier) {
  return tier == Tier::kDisk ? "disk" : tier == Tier::kHost ? "host" : "device";
}

// One pool of bytes with a budget of its own: the host's, or one device's. The values that have no name are those of
// further devices. On a device that computes in host memory the two are parts of one memory.
enum class Memory : uint8_t {
  kHost = 0,
  kDevice = 1,  // The first device's.
};

// The memory of a device, counted from 0 in the order in which the server was given them.
constexpr Memory DeviceMemory(int device) { return static_cast<Memory>(1 + device); }

constexpr bool IsHost(Memory memory) { return memory == Memory::kHost; }

// The device whose memory it is; not of the host's.
constexpr int DeviceOf(Memory memory) { return static_cast<int>(memory) - 1; }

// Its place in a list of memories, the host's first.
constexpr size_t Index(Memory memory) { return static_cast<size_t>(memory); }

// The memory of a tier other than disk, where there is one device.
inline Memory MemoryOf(Tier tier) { return tier == Tier::kDevice ? Memory::kDevice : Memory::kHost; }

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_MEMORY_H_
