// The header of a safetensors file: what the parser accepts must be sound.

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"
#include "core/storage/safetensors.h"
#include "tests/fuzz/require.h"

namespace ditserve {
namespace {

void CheckSound(const SafetensorsHeader& header, int64_t data_begin, int64_t file_bytes) {
  int64_t end = data_begin;
  for (const TensorEntry& tensor : header.tensors) {
    Require(!tensor.name.empty() && tensor.name.find_first_of(std::string("/\\\0", 3)) == std::string::npos);
    Require(tensor.shape.size() <= 8);
    Require(TensorBytes(tensor.shape, tensor.dtype) == std::optional(tensor.size_bytes));
    Require(tensor.offset_bytes == end);
    end += tensor.size_bytes;
  }
  Require(end == file_bytes);
}

}  // namespace
}  // namespace ditserve

// The first two bytes are the data's length, the rest is the header's JSON.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const absl::string_view json(reinterpret_cast<const char*>(data) + 2, size - 2);
  const int64_t begin = 8 + static_cast<int64_t>(json.size());
  const int64_t end = begin + (data[0] | data[1] << 8);
  const absl::StatusOr<ditserve::SafetensorsHeader> header = ditserve::ParseSafetensorsHeader(json, begin, end);
  if (header.ok()) ditserve::CheckSound(*header, begin, end);
  return 0;
}
