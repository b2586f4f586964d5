#ifndef DITSERVE_CORE_STORAGE_MODEL_WEIGHTS_H_
#define DITSERVE_CORE_STORAGE_MODEL_WEIGHTS_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/storage/checkpoint.h"
#include "core/storage/module.h"

namespace ditserve {

// The weights of one model: its modules in execution order, and where each parameter stands in the checkpoint.
//
// Thread safety: immutable.
class ModelWeights {
 public:
  // Parameters that lie side by side in a shard, and are read together.
  struct Run {
    int64_t begin_bytes = 0, end_bytes = 0;  // In the shard's file.
    std::vector<int> parameters;             // In the file's order.
  };

  struct Module {
    ModuleSpec spec;
    std::vector<const StoredTensor*> stored;  // Of each parameter: of its rows that are read.
    std::vector<Run> runs;                    // Together they are all parameters.
    int64_t stored_bytes = 0;
  };

  // Binds `modules`, given in execution order, to the tensors of `checkpoint`.
  // Errors: InvalidArgument that names the tensor, and its shard where it has one: missing, misshapen, or in the
  // checkpoint without being in the model.
  static absl::StatusOr<std::unique_ptr<ModelWeights>> Bind(std::string name, const std::vector<ModuleSpec>& modules,
                                                            std::unique_ptr<Checkpoint> checkpoint);

  const std::string& name() const { return name_; }
  // That nothing else has had in this process, as an address may have been another's.
  int64_t id() const { return id_; }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const Module& module(ModuleIndex index) const { return modules_[index]; }
  int size() const { return static_cast<int>(modules_.size()); }

  int64_t parameters() const { return parameters_; }
  // Of rows that nothing reads: they stay on disk.
  int64_t unread_bytes() const { return unread_bytes_; }

 private:
  ModelWeights();

  // The tensor's rows that are read.
  const StoredTensor* Shortened(const StoredTensor& stored, const ParameterSpec& parameter);

  const int64_t id_;
  std::string name_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<Module> modules_;
  std::deque<StoredTensor> read_rows_;  // Of tensors that are not read to their end.
  int64_t parameters_ = 0;
  int64_t unread_bytes_ = 0;
};

// Number of elements of a shape.
int64_t ElementCount(const std::vector<int64_t>& shape);

}  // namespace ditserve

#endif  // DITSERVE_CORE_STORAGE_MODEL_WEIGHTS_H_
