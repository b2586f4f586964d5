#ifndef DITSERVE_CORE_STORAGE_SAFETENSORS_H_
#define DITSERVE_CORE_STORAGE_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "core/base/dtype.h"
#include "core/storage/file.h"

namespace ditserve {

// One tensor of a safetensors file.
struct TensorEntry {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  int64_t offset_bytes;  // From the beginning of the file.
  int64_t size_bytes;
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // By offset.
  std::map<std::string, std::string> metadata;
};

// Bytes of a tensor; nullopt if a length is negative or they exceed 2^63 - 1.
std::optional<int64_t> TensorBytes(absl::Span<const int64_t> shape, DType dtype);

// Parses the JSON header of a safetensors file whose data begins at byte `data_begin` and which is `file_bytes` long.
// Strict: the data must be covered without gap or overlap, names and shapes must be sane (rank <= 8, no path parts),
// no key may stand twice.
// Errors: InvalidArgument that names the tensor, without the file.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json, int64_t data_begin,
                                                         int64_t file_bytes);

// Reads and parses the header of `file`. Errors: InvalidArgument, or as File::ReadAt; they name the file.
absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const File& file);

}  // namespace ditserve

#endif  // DITSERVE_CORE_STORAGE_SAFETENSORS_H_
