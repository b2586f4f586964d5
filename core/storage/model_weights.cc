#include "core/storage/model_weights.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <numeric>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

std::string ShapeText(const std::vector<int64_t>& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

absl::StatusOr<const StoredTensor*> BindParameter(const std::string& name, const ParameterSpec& parameter,
                                                  const Checkpoint& checkpoint) {
  const StoredTensor* const stored = checkpoint.Find(name);
  if (stored == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("the checkpoint has no tensor '", name, "'"));
  }
  if (stored->shape != parameter.shape) {
    return absl::InvalidArgumentError(absl::StrCat("tensor '", name, "' in ", checkpoint.shard_name(stored->shard),
                                                   " has shape ", ShapeText(stored->shape), "; the model's is ",
                                                   ShapeText(parameter.shape)));
  }
  return stored;
}

std::vector<ModelWeights::Run> FindRuns(const std::vector<const StoredTensor*>& stored) {
  std::vector<int> order(stored.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) {
    return std::pair(stored[a]->shard, stored[a]->offset_bytes) < std::pair(stored[b]->shard, stored[b]->offset_bytes);
  });
  std::vector<ModelWeights::Run> runs;
  for (const int i : order) {
    const StoredTensor& tensor = *stored[i];
    const bool goes_on = !runs.empty() && runs.back().end_bytes == tensor.offset_bytes &&
                         stored[runs.back().parameters.back()]->shard == tensor.shard;
    if (!goes_on) runs.push_back({tensor.offset_bytes, tensor.offset_bytes, {}});
    runs.back().end_bytes += tensor.size_bytes;
    runs.back().parameters.push_back(i);
  }
  return runs;
}

absl::Status RefuseExtraTensors(const Checkpoint& checkpoint, const absl::flat_hash_set<const StoredTensor*>& bound) {
  for (const StoredTensor& stored : checkpoint.tensors()) {
    if (bound.contains(&stored)) continue;
    return absl::InvalidArgumentError(absl::StrCat("tensor '", stored.name, "' in ",
                                                   checkpoint.shard_name(stored.shard), " is not part of the model"));
  }
  return absl::OkStatus();
}

}  // namespace

ModelWeights::ModelWeights()
    : id_([] {
        static std::atomic<int64_t> next = 0;
        return next++;
      }()) {}

int64_t ElementCount(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t length : shape) count *= length;
  return count;
}

const StoredTensor* ModelWeights::Shortened(const StoredTensor& stored, const ParameterSpec& parameter) {
  assert(*parameter.rows_read <= parameter.shape[0]);
  StoredTensor& read = read_rows_.emplace_back(stored);
  read.shape = parameter.read_shape();
  read.size_bytes = ElementCount(read.shape) * SizeOf(read.dtype);
  unread_bytes_ += stored.size_bytes - read.size_bytes;
  return &read;
}

absl::StatusOr<std::unique_ptr<ModelWeights>> ModelWeights::Bind(std::string name,
                                                                 const std::vector<ModuleSpec>& modules,
                                                                 std::unique_ptr<Checkpoint> checkpoint) {
  auto weights = std::unique_ptr<ModelWeights>(new ModelWeights());
  absl::flat_hash_set<const StoredTensor*> bound;
  for (const ModuleSpec& spec : modules) {
    Module module{spec};
    for (const ParameterSpec& parameter : spec.parameters) {
      DITSERVE_ASSIGN_OR_RETURN(const StoredTensor* stored,
                                BindParameter(absl::StrCat(spec.path, ".", parameter.name), parameter, *checkpoint));
      weights->parameters_ += ElementCount(stored->shape);
      bound.insert(stored);
      if (parameter.rows_read) stored = weights->Shortened(*stored, parameter);
      module.stored.push_back(stored);
      module.stored_bytes += stored->size_bytes;
    }
    module.runs = FindRuns(module.stored);
    weights->modules_.push_back(std::move(module));
  }
  DITSERVE_RETURN_IF_ERROR(RefuseExtraTensors(*checkpoint, bound));
  weights->name_ = std::move(name);
  weights->checkpoint_ = std::move(checkpoint);
  return weights;
}

}  // namespace ditserve
