// NumPy's files: what the parser accepts must be sound, and be the same once written and read again.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "client/ditctl/npy.h"
#include "client/ditctl/tensors.h"
#include "tests/fuzz/require.h"

namespace ditserve::ditctl {
namespace {

void CheckSound(const v1::Tensor& tensor) {
  Require(tensor.shape_size() <= 8);
  for (const int64_t length : tensor.shape()) Require(length >= 1);
  Require(BytesOf(tensor) == std::optional(static_cast<int64_t>(tensor.data().size())));
  const absl::StatusOr<v1::Tensor> again = ParseNpy(ToNpy(tensor));
  Require(again.ok() && again->SerializeAsString() == tensor.SerializeAsString());
}

}  // namespace
}  // namespace ditserve::ditctl

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<ditserve::v1::Tensor> tensor = ditserve::ditctl::ParseNpy(bytes);
  if (tensor.ok()) {
    ditserve::ditctl::CheckSound(*tensor);
  } else {
    ditserve::Require(absl::IsInvalidArgument(tensor.status()));
  }
  return 0;
}
