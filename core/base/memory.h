#ifndef DITSERVE_CORE_BASE_MEMORY_H_
#define DITSERVE_CORE_BASE_MEMORY_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace ditserve {

// Where a weight can be, slowest first.
enum class Tier : uint8_t { kDisk, kHost, kDevice };

// "disk", "host", "device".
inline absl::string_view Name(Tier tier) {
  return tier == Tier::kDisk ? "disk" : tier == Tier::kHost ? "host" : "device";
}

// A memory with a budget of its own. On a device that computes in host memory the two are parts of one memory.
enum class Memory : uint8_t { kDevice, kHost };

// The memory of a tier other than disk.
inline Memory MemoryOf(Tier tier) { return tier == Tier::kDevice ? Memory::kDevice : Memory::kHost; }

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_MEMORY_H_
