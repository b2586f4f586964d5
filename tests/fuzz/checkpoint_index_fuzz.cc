// The index of a sharded checkpoint: the shard names that it lets through must stay in their folder.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "core/storage/checkpoint_files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view json(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<std::map<std::string, std::string>> weight_map = ditserve::ParseCheckpointIndex(json);
  if (!weight_map.ok()) return 0;
  for (const auto& [tensor, shard] : *weight_map) {
    if (shard.empty() || shard == "." || shard == "..") std::abort();
    if (shard.find_first_of(std::string("/\\\0", 3)) != std::string::npos) std::abort();
  }
  return 0;
}
