#include "core/storage/checkpoint.h"

#include <algorithm>
#include <cassert>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/storage/checkpoint_files.h"
#include "core/storage/json_reader.h"
#include "core/storage/safetensors.h"

namespace ditserve {
namespace {

// Checks that the index and the shards say the same of every tensor.
absl::Status CheckIndex(const CheckpointFiles& files, const Checkpoint& checkpoint) {
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    const std::string& shard = checkpoint.shard_name(tensor.shard);
    const auto entry = files.weight_map.find(tensor.name);
    if (entry == files.weight_map.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", Printable(tensor.name), "' in ", shard, " is not in ", files.index_name));
    }
    if (entry->second != shard) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", Printable(tensor.name), "' is in ", shard, ", but ",
                                                     files.index_name, " places it in ", Printable(entry->second)));
    }
  }
  for (const auto& [name, shard] : files.weight_map) {
    if (checkpoint.Find(name) == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", Printable(name), "' is missing from ",
                                                     Printable(shard), ", where ", files.index_name, " places it"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<StoredTensor>> ReadShard(const File& file, int shard) {
  DITSERVE_ASSIGN_OR_RETURN(SafetensorsHeader header, ReadSafetensorsHeader(file));
  std::vector<StoredTensor> tensors;
  for (TensorEntry& entry : header.tensors) {
    if (!IsWeightDType(entry.dtype)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", Printable(entry.name), "' in ", file.name(), " is ",
                                                     SafetensorsName(entry.dtype),
                                                     "; weights are BF16, F16, F32 or F8_E4M3"));
    }
    tensors.push_back(
        {std::move(entry.name), entry.dtype, std::move(entry.shape), shard, entry.offset_bytes, entry.size_bytes});
  }
  return tensors;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path, const FileCalls& calls) {
  DITSERVE_ASSIGN_OR_RETURN(CheckpointFiles files, FindCheckpointFiles(path));
  auto checkpoint = std::unique_ptr<Checkpoint>(new Checkpoint());
  for (const std::string& shard : files.shards) {
    DITSERVE_ASSIGN_OR_RETURN(std::unique_ptr<File> file, File::Open(shard, calls));
    DITSERVE_ASSIGN_OR_RETURN(std::vector<StoredTensor> tensors,
                              ReadShard(*file, static_cast<int>(checkpoint->shards_.size())));
    std::move(tensors.begin(), tensors.end(), std::back_inserter(checkpoint->tensors_));
    checkpoint->shards_.push_back(std::move(file));
  }
  DITSERVE_RETURN_IF_ERROR(checkpoint->IndexTensors());
  if (!files.index_name.empty()) DITSERVE_RETURN_IF_ERROR(CheckIndex(files, *checkpoint));
  checkpoint->config_json_ = std::move(files.config_json);
  return checkpoint;
}

std::unique_ptr<Checkpoint> Checkpoint::Describe(std::vector<StoredTensor> tensors) {
  auto checkpoint = std::unique_ptr<Checkpoint>(new Checkpoint());
  checkpoint->tensors_ = std::move(tensors);
  const absl::Status indexed = checkpoint->IndexTensors();
  assert(indexed.ok());  // Modules have different names.
  static_cast<void>(indexed);
  return checkpoint;
}

absl::Status Checkpoint::IndexTensors() {
  if (tensors_.empty()) return absl::InvalidArgumentError("the checkpoint has no tensors");
  std::sort(tensors_.begin(), tensors_.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const StoredTensor& tensor = tensors_[i];
    const auto [entry, added] = index_.try_emplace(tensor.name, static_cast<int>(i));
    if (!added) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", Printable(tensor.name), "' is both in ",
                                                     shard_name(tensors_[entry->second].shard), " and in ",
                                                     shard_name(tensor.shard)));
    }
    size_bytes_ += tensor.size_bytes;
  }
  return absl::OkStatus();
}

const StoredTensor* Checkpoint::Find(absl::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

const std::string& Checkpoint::shard_name(int shard) const { return shards_[shard]->name(); }

absl::StatusOr<absl::Span<const std::byte>> Checkpoint::Read(const StoredTensor& tensor, int64_t begin, int64_t size,
                                                             absl::Span<std::byte> slot) const {
  assert(0 <= begin && begin <= tensor.size_bytes && 0 <= size);
  absl::StatusOr<absl::Span<const std::byte>> read =
      shards_[tensor.shard]->ReadDirect(tensor.offset_bytes + begin, size, slot);
  if (read.ok()) return read;
  return absl::Status(read.status().code(),
                      absl::StrCat("reading tensor '", Printable(tensor.name), "': ", read.status().message()));
}

}  // namespace ditserve
