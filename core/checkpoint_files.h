#ifndef DITSERVE_CORE_CHECKPOINT_FILES_H_
#define DITSERVE_CORE_CHECKPOINT_FILES_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ditserve {

// The files that a checkpoint consists of.
struct CheckpointFiles {
  std::vector<std::string> shards;                // Paths.
  std::string index_name;                         // Empty without an index.
  std::map<std::string, std::string> weight_map;  // Of the index: tensor to shard name.
  std::string config_json;                        // Text of config.json; empty without one.
};

// Finds the files of what Checkpoint::Open takes. Errors as there; shards named by an index need not exist.
absl::StatusOr<CheckpointFiles> FindCheckpointFiles(const std::string& path);

}  // namespace ditserve

#endif  // DITSERVE_CORE_CHECKPOINT_FILES_H_
