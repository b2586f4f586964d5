#include "core/copy_form.h"

namespace ditserve {
namespace {

constexpr int64_t kParameterAlignment = 64;  // A cache line, and what vector loads like.
constexpr int64_t kPageBytes = 4096;

int64_t RoundUp(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

CopyLayout LayoutOf(const ModelWeights::Module& module, DType dtype) {
  CopyLayout layout;
  for (const StoredTensor* stored : module.stored) {
    layout.offsets_bytes.push_back(layout.size_bytes);
    layout.size_bytes += RoundUp(ElementCount(stored->shape) * SizeOf(dtype), kParameterAlignment);
  }
  layout.size_bytes = RoundUp(layout.size_bytes, kPageBytes);
  return layout;
}

}  // namespace ditserve
