#ifndef DITSERVE_CORE_DEVICES_HOST_MEMORY_H_
#define DITSERVE_CORE_DEVICES_HOST_MEMORY_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace ditserve {

// A memory and what of it could still be allocated now, bytes.
struct MemoryStatus {
  int64_t total_bytes = 0;
  int64_t available_bytes = 0;
  std::optional<int64_t> own_bytes = std::nullopt;  // Of the host's, what this process holds: as OwnHostMemoryBytes.
};

// The machine's memory as the kernel tells it under `root` (/proc, /sys/fs/cgroup), or that of the process's control
// group (of either version, its own and those above it) where that is less. Page cache that can be dropped is
// available. Nothing is where tasks stand still for lack of memory (PSI "full", a tenth of the last 10 seconds or
// more). Errors: Internal if /proc/meminfo can't be read.
absl::StatusOr<MemoryStatus> ReadHostMemory(const std::string& root = "");

// Bytes of memory that this process holds and nobody else could use: weights, heap, libraries' data. 0 where the kernel
// does not tell.
int64_t OwnHostMemoryBytes(const std::string& root = "");

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_HOST_MEMORY_H_
