#include "models/seeded_checkpoint.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "core/base/status_macros.h"
#include "core/devices/cast.h"
#include "core/storage/safetensors_writer.h"
#include "models/module_tree.h"
#include "models/seeded_values.h"
#include "nlohmann/json.hpp"

namespace ditserve {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kChunkElements = 1 << 18;
constexpr double kBiasDeviation = 0.02;
constexpr double kNormDeviation = 0.1;

// A tensor of the checkpoint and how its values are made: mean + deviation * n, n roughly standard normal.
struct SeededTensor {
  std::string name;
  std::vector<int64_t> shape;
  float mean;
  float deviation;

  int64_t elements() const {
    int64_t count = 1;
    for (const int64_t length : shape) count *= length;
    return count;
  }
};

std::vector<SeededTensor> TensorsOf(const QwenImageDiTConfig& config) {
  std::vector<SeededTensor> tensors;
  for (const ModuleSpec& module : ListModules(QwenImageDiTTree(config))) {
    for (const ParameterSpec& parameter : module.parameters) {
      SeededTensor tensor{absl::StrCat(module.path, ".", parameter.name), parameter.shape, 0.0f, 0.0f};
      if (parameter.shape.size() == 2) {
        tensor.deviation = static_cast<float>(1.0 / std::sqrt(static_cast<double>(parameter.shape[1])));
      } else if (module.type == "RMSNorm") {
        tensor.mean = 1.0f;
        tensor.deviation = static_cast<float>(kNormDeviation);
      } else {
        tensor.deviation = static_cast<float>(kBiasDeviation);
      }
      tensors.push_back(std::move(tensor));
    }
  }
  return tensors;
}

// One checkpoint in the making, in a folder of its own until it is whole.
class CheckpointMaker {
 public:
  // `tensors` are at least as many as shards.
  CheckpointMaker(const SeededCheckpointOptions& options, std::vector<SeededTensor> tensors, fs::path folder,
                  const std::function<void(int64_t, int64_t)>& progress, const std::function<bool()>& cancelled)
      : options_(options), folder_(std::move(folder)), progress_(progress), cancelled_(cancelled) {
    CutIntoShards(std::move(tensors));
  }

  absl::Status Write() {
    const unsigned threads = std::clamp(std::thread::hardware_concurrency(), 1u, 8u);
    std::vector<std::thread> workers;
    for (unsigned i = 0; i < threads; ++i) workers.emplace_back([this] { WriteShards(); });
    for (std::thread& worker : workers) worker.join();
    DITSERVE_RETURN_IF_ERROR(status());
    DITSERVE_RETURN_IF_ERROR(WriteText("config.json", ToConfigJson(options_.config)));
    return WriteText("diffusion_pytorch_model.safetensors.index.json", IndexJson());
  }

 private:
  // In the order of the model's definition, in about equal shares of bytes, at least a tensor each; by name inside a
  // shard.
  void CutIntoShards(std::vector<SeededTensor> tensors) {
    const int64_t shards = options_.shards;
    shards_.resize(shards);
    for (const SeededTensor& tensor : tensors) total_bytes_ += tensor.elements() * SizeOf(options_.dtype);
    int64_t before_bytes = 0, shard = 0, left = static_cast<int64_t>(tensors.size());
    for (SeededTensor& tensor : tensors) {
      const int64_t next = shards_[shard].empty() ? shard : shard + 1;
      shard = std::clamp(before_bytes * shards / total_bytes_, std::max(shard, shards - left), next);
      before_bytes += tensor.elements() * SizeOf(options_.dtype);
      --left;
      shards_[shard].push_back(std::move(tensor));
    }
    for (auto& shard : shards_) {
      std::sort(shard.begin(), shard.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    }
  }

  std::string ShardName(size_t shard) const {
    return absl::StrFormat("diffusion_pytorch_model-%05d-of-%05d.safetensors", shard + 1, shards_.size());
  }

  // A worker's share: the next shard that nobody writes, until none is left or something failed.
  void WriteShards() {
    for (size_t shard; (shard = next_shard_++) < shards_.size();) {
      const absl::Status status = WriteShard(shard);
      absl::MutexLock lock(&mutex_);
      status_.Update(status);
      if (!status_.ok()) return;
    }
  }

  absl::Status WriteShard(size_t shard) {
    std::vector<SafetensorsWriter::Tensor> header;
    for (const SeededTensor& tensor : shards_[shard]) header.push_back({tensor.name, options_.dtype, tensor.shape});
    DITSERVE_ASSIGN_OR_RETURN(
        const std::unique_ptr<SafetensorsWriter> writer,
        SafetensorsWriter::Create((folder_ / ShardName(shard)).string(), header, {{"format", "pt"}}));
    std::vector<float> values(kChunkElements);
    std::vector<std::byte> bytes(kChunkElements * SizeOf(options_.dtype));
    for (const SeededTensor& tensor : shards_[shard]) {
      for (int64_t begin = 0; begin < tensor.elements(); begin += kChunkElements) {
        const int64_t count = std::min(kChunkElements, tensor.elements() - begin);
        FillSeeded(options_.seed, tensor.name, begin, count, tensor.mean, tensor.deviation, values.data());
        Cast(values.data(), DType::kFloat32, {}, bytes.data(), options_.dtype, count);
        const size_t size = count * SizeOf(options_.dtype);
        DITSERVE_RETURN_IF_ERROR(writer->Append(absl::MakeConstSpan(bytes.data(), size)));
        DITSERVE_RETURN_IF_ERROR(Report(static_cast<int64_t>(size)));
      }
    }
    return writer->Finish();
  }

  absl::Status status() {
    absl::MutexLock lock(&mutex_);
    return status_;
  }

  absl::Status Report(int64_t bytes) {
    absl::MutexLock lock(&mutex_);
    written_bytes_ += bytes;
    if (progress_) progress_(written_bytes_, total_bytes_);
    return cancelled_ && cancelled_() ? absl::CancelledError("interrupted") : status_;
  }

  std::string IndexJson() const {
    nlohmann::json weight_map;
    for (size_t i = 0; i < shards_.size(); ++i) {
      for (const SeededTensor& tensor : shards_[i]) weight_map[tensor.name] = ShardName(i);
    }
    return nlohmann::json{{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", weight_map}}.dump(2) + "\n";
  }

  absl::Status WriteText(const char* name, const std::string& text) const {
    std::ofstream file(folder_ / name, std::ios::binary);
    file << text;
    file.close();
    if (file.good()) return absl::OkStatus();
    const std::string message = absl::StrCat(name, ": writing failed");
    return errno == ENOSPC ? absl::ResourceExhaustedError(message) : absl::UnavailableError(message);
  }

  const SeededCheckpointOptions& options_;
  const fs::path folder_;
  const std::function<void(int64_t, int64_t)>& progress_;
  const std::function<bool()>& cancelled_;
  std::vector<std::vector<SeededTensor>> shards_;
  int64_t total_bytes_ = 0;
  std::atomic<size_t> next_shard_ = 0;
  absl::Mutex mutex_;
  int64_t written_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::Status WriteSeededCheckpoint(const SeededCheckpointOptions& options, const std::string& directory,
                                   const std::function<void(int64_t written, int64_t total)>& progress,
                                   const std::function<bool()>& cancelled) {
  if (!IsWeightDType(options.dtype) || options.shards < 1 || options.shards > 1000) {
    return absl::InvalidArgumentError("a checkpoint has 1 to 1000 shards of float32, bfloat16, float16 or float8");
  }
  std::vector<SeededTensor> tensors = TensorsOf(options.config);
  if (static_cast<size_t>(options.shards) > tensors.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("no more shards than tensors, ", tensors.size(), "; found ", options.shards));
  }
  fs::path target = fs::path(directory).lexically_normal();
  if (!target.has_filename()) target = target.parent_path();  // "out/" names "out".
  std::error_code error;
  if (fs::exists(target, error) && !(fs::is_directory(target, error) && fs::is_empty(target, error))) {
    return absl::AlreadyExistsError(absl::StrCat("'", directory, "' exists already and is not an empty folder"));
  }
  const fs::path partial = absl::StrCat(target.string(), ".partial");
  fs::create_directories(target.has_parent_path() ? target.parent_path() : fs::path("."), error);
  if (!fs::create_directory(partial, error)) {
    return absl::UnavailableError(absl::StrCat("can't create '", partial.filename().string(), "' beside the target: ",
                                               error ? error.message() : "it exists; is another run writing it?"));
  }
  absl::Status status = CheckpointMaker(options, std::move(tensors), partial, progress, cancelled).Write();
  if (status.ok()) {
    fs::rename(partial, target, error);
    if (error) status = absl::UnavailableError(absl::StrCat("can't rename the finished folder: ", error.message()));
  }
  if (!status.ok()) fs::remove_all(partial, error);
  return status;
}

}  // namespace ditserve
