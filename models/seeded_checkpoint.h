#ifndef DITSERVE_MODELS_SEEDED_CHECKPOINT_H_
#define DITSERVE_MODELS_SEEDED_CHECKPOINT_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "core/base/dtype.h"
#include "models/config.h"

namespace ditserve {

// What a checkpoint of made-up weights looks like.
struct SeededCheckpointOptions {
  QwenImageDiTConfig config;
  uint64_t seed = 0;
  DType dtype = DType::kBFloat16;
  int shards = 9;
};

// Writes a checkpoint in diffusers layout to the new folder `directory`: config.json, index and shards, the tensors of
// a shard sorted by name. The bytes depend on `options` alone, on every machine. Weights are roughly normal with
// deviation 1 / sqrt(fan-in), biases small, norms near 1, so that activations stay of order one at any depth.
//
// Writes into a folder beside `directory` and renames it when complete; on an error or when `cancelled` returns true
// nothing is left behind. Memory: a few MiB. `progress` is called with bytes written and bytes in all,
// one call at a time, from any thread; `cancelled` likewise.
//
// Errors: AlreadyExists if `directory` exists and is not empty; InvalidArgument; ResourceExhausted if the disk is
// full; Cancelled; Unavailable for other I/O errors.
absl::Status WriteSeededCheckpoint(const SeededCheckpointOptions& options, const std::string& directory,
                                   const std::function<void(int64_t written, int64_t total)>& progress,
                                   const std::function<bool()>& cancelled);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_SEEDED_CHECKPOINT_H_
