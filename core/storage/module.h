#ifndef DITSERVE_CORE_STORAGE_MODULE_H_
#define DITSERVE_CORE_STORAGE_MODULE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace ditserve {

// Index of a module in its model's list of modules.
using ModuleIndex = int;

// One parameter of a module, as the model's class defines it.
struct ParameterSpec {
  std::string name;  // "weight" or "bias".
  std::vector<int64_t> shape;
  // How many rows, from the first on, operations read: of the others nothing is moved. Nullopt: all.
  std::optional<int64_t> rows_read = std::nullopt;

  std::vector<int64_t> read_shape() const {
    std::vector<int64_t> read = shape;
    if (rows_read) read[0] = *rows_read;
    return read;
  }
};

// A leaf that holds parameters: the unit that moves.
struct ModuleSpec {
  std::string path;  // "transformer_blocks.0.attn.to_q"; a parameter's tensor is named path + "." + name.
  std::string type;  // "Linear", "RMSNorm".
  std::vector<ParameterSpec> parameters;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_STORAGE_MODULE_H_
