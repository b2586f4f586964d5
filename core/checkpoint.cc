#include "core/checkpoint.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/checkpoint_files.h"
#include "core/safetensors.h"
#include "core/status_macros.h"

namespace ditserve {
namespace {

// Checks that the index and the shards say the same of every tensor.
absl::Status CheckIndex(const CheckpointFiles& files, absl::Span<const StoredTensor> tensors,
                        const std::vector<std::string>& shard_names) {
  size_t found = 0;
  for (const StoredTensor& tensor : tensors) {
    const auto entry = files.weight_map.find(tensor.name);
    const std::string& shard = shard_names[tensor.shard];
    if (entry == files.weight_map.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", tensor.name, "' in ", shard, " is not in ", files.index_name));
    }
    if (entry->second != shard) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", tensor.name, "' is in ", shard, ", but ",
                                                     files.index_name, " places it in ", entry->second));
    }
    ++found;
  }
  if (found == files.weight_map.size()) return absl::OkStatus();
  std::set<absl::string_view> names;
  for (const StoredTensor& tensor : tensors) names.insert(tensor.name);
  for (const auto& [name, shard] : files.weight_map) {
    if (names.count(name) == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", name, "' is missing from ", shard, ", where ", files.index_name, " places it"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<StoredTensor>> ReadShard(const File& file, int shard) {
  DITSERVE_ASSIGN_OR_RETURN(SafetensorsHeader header, ReadSafetensorsHeader(file));
  std::vector<StoredTensor> tensors;
  for (TensorEntry& entry : header.tensors) {
    if (!IsWeightDType(entry.dtype)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", entry.name, "' in ", file.name(), " is ",
                                                     SafetensorsName(entry.dtype),
                                                     "; weights are BF16, F16, F32 or F8_E4M3"));
    }
    tensors.push_back(
        {std::move(entry.name), entry.dtype, std::move(entry.shape), shard, entry.offset_bytes, entry.size_bytes});
  }
  return tensors;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  DITSERVE_ASSIGN_OR_RETURN(const CheckpointFiles files, FindCheckpointFiles(path));
  auto checkpoint = std::unique_ptr<Checkpoint>(new Checkpoint());
  checkpoint->config_json_ = files.config_json;
  std::vector<std::string> names;
  for (const std::string& shard : files.shards) {
    DITSERVE_ASSIGN_OR_RETURN(std::unique_ptr<File> file, File::Open(shard));
    DITSERVE_ASSIGN_OR_RETURN(std::vector<StoredTensor> tensors,
                              ReadShard(*file, static_cast<int>(checkpoint->shards_.size())));
    for (StoredTensor& tensor : tensors) checkpoint->tensors_.push_back(std::move(tensor));
    names.push_back(file->name());
    checkpoint->shards_.push_back(std::move(file));
  }
  std::sort(checkpoint->tensors_.begin(), checkpoint->tensors_.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  for (size_t i = 0; i < checkpoint->tensors_.size(); ++i) {
    const StoredTensor& tensor = checkpoint->tensors_[i];
    const auto [entry, added] = checkpoint->index_.try_emplace(tensor.name, static_cast<int>(i));
    if (!added) {
      const StoredTensor& other = checkpoint->tensors_[entry->second];
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", tensor.name, "' is both in ", names[other.shard], " and in ", names[tensor.shard]));
    }
    checkpoint->size_bytes_ += tensor.size_bytes;
  }
  if (checkpoint->tensors_.empty()) return absl::InvalidArgumentError("the checkpoint has no tensors");
  if (!files.index_name.empty()) DITSERVE_RETURN_IF_ERROR(CheckIndex(files, checkpoint->tensors_, names));
  return checkpoint;
}

const StoredTensor* Checkpoint::Find(absl::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

const std::string& Checkpoint::shard_name(int shard) const { return shards_[shard]->name(); }

absl::StatusOr<absl::Span<const std::byte>> Checkpoint::Read(const StoredTensor& tensor, int64_t begin, int64_t size,
                                                             absl::Span<std::byte> slot) const {
  absl::StatusOr<absl::Span<const std::byte>> read =
      shards_[tensor.shard]->ReadDirect(tensor.offset_bytes + begin, size, slot);
  if (read.ok()) return read;
  return absl::Status(read.status().code(),
                      absl::StrCat("reading tensor '", tensor.name, "': ", read.status().message()));
}

}  // namespace ditserve
