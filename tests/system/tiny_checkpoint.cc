// tiny_checkpoint FOLDER: writes a seeded checkpoint of one narrow block, which ditctl's requests fit.

#include <cstdio>
#include <string>

#include "absl/status/status.h"
#include "models/seeded_checkpoint.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  ditserve::SeededCheckpointOptions options;
  options.config.num_layers = 1;
  options.config.num_attention_heads = 2;
  options.config.attention_head_dim = 16;
  options.config.axes_dims_rope = {4, 6, 6};
  options.shards = 2;
  const absl::Status written = ditserve::WriteSeededCheckpoint(options, argv[1], {}, {});
  if (!written.ok()) std::fprintf(stderr, "tiny_checkpoint: %s\n", std::string(written.message()).c_str());
  return written.ok() ? 0 : 1;
}
