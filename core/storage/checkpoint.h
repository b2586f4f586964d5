#ifndef DITSERVE_CORE_STORAGE_CHECKPOINT_H_
#define DITSERVE_CORE_STORAGE_CHECKPOINT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "core/base/dtype.h"
#include "core/storage/file.h"

namespace ditserve {

// Where one tensor stands in a checkpoint.
struct StoredTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  int shard;             // Index of the shard.
  int64_t offset_bytes;  // In the shard's file.
  int64_t size_bytes;
};

// An open checkpoint of one or more safetensors shards: names to places, and reads. Opening reads headers only; the
// data is read on demand from descriptors that stay open.
//
// Thread safety: thread-safe after Open.
class Checkpoint {
 public:
  // Alignment of the memory and offsets that reads use, bytes.
  static constexpr int64_t kReadAlignment = 4096;

  // Opens `path`: a folder in diffusers layout (`*.safetensors.index.json` and its shards, or one `*.safetensors`
  // file), one `.safetensors` file, or a pattern such as `dir/model-0000{1-9}-of-00009.safetensors` or
  // `dir/model-*.safetensors`.
  //
  // Errors: NotFound; InvalidArgument for what is not a valid checkpoint, naming the shard's file and tensor (never
  // the folder), and for .bin .pt .pth .ckpt files, with the reason; as File::ReadAt. `calls` must outlive it.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path,
                                                          const FileCalls& calls = FileCalls::System());

  // One that is nowhere, to tell what a model of these tensors would take: it has no shards and is not read.
  static std::unique_ptr<Checkpoint> Describe(std::vector<StoredTensor> tensors);

  // Null if there is none of that name.
  const StoredTensor* Find(absl::string_view name) const;

  // All tensors, sorted by name.
  absl::Span<const StoredTensor> tensors() const { return tensors_; }

  // File name of a shard, without its folder.
  const std::string& shard_name(int shard) const;

  // The text of config.json beside the shards; empty if there is none.
  const std::string& config_json() const { return config_json_; }

  // Sum of all tensors' bytes.
  int64_t size_bytes() const { return size_bytes_; }

  // Reads `size` bytes from byte `begin` of the tensor on into `slot`, past the page cache where the file system
  // allows, and returns where in `slot` they are; they may go on into the tensors that follow it in its shard. `slot`
  // takes all blocks of kReadAlignment bytes that have a part in them: its beginning corresponds to the first one's.
  //
  // Errors: DataLoss if the shard was truncated, replaced, rewritten or unlinked since Open; Unavailable if the disk
  // fails after bounded retries. Both name the shard and tensor.
  absl::StatusOr<absl::Span<const std::byte>> Read(const StoredTensor& tensor, int64_t begin, int64_t size,
                                                   absl::Span<std::byte> slot) const;

 private:
  Checkpoint() = default;

  // Sorts tensors_ and fills what depends on them. InvalidArgument if there are none or one is there twice.
  absl::Status IndexTensors();

  std::vector<std::unique_ptr<File>> shards_;
  std::vector<StoredTensor> tensors_;
  absl::flat_hash_map<absl::string_view, int> index_;  // Name to position in tensors_.
  std::string config_json_;
  int64_t size_bytes_ = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_STORAGE_CHECKPOINT_H_
