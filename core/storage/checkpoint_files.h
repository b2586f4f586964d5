#ifndef DITSERVE_CORE_STORAGE_CHECKPOINT_FILES_H_
#define DITSERVE_CORE_STORAGE_CHECKPOINT_FILES_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ditserve {

// The files that a checkpoint consists of.
struct CheckpointFiles {
  std::vector<std::string> shards;                // Paths.
  std::string index_name;                         // Empty without an index.
  std::map<std::string, std::string> weight_map;  // Of the index: tensor to shard name.
  std::string config_json;                        // Text of config.json; empty without one.
};

// Finds the files of what Checkpoint::Open takes. Errors as there; shards that are named need not exist.
absl::StatusOr<CheckpointFiles> FindCheckpointFiles(const std::string& path);

// The weight_map of an index: tensor to shard name, which is a plain file name.
// Errors: InvalidArgument that names the tensor, without the index.
absl::StatusOr<std::map<std::string, std::string>> ParseCheckpointIndex(absl::string_view json);

}  // namespace ditserve

#endif  // DITSERVE_CORE_STORAGE_CHECKPOINT_FILES_H_
