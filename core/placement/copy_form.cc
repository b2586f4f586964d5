#include "core/placement/copy_form.h"

#include <algorithm>

namespace ditserve {
namespace {

// Libraries choose how they compute by the alignment of what they read, up to this one: results are the same wherever a
// copy lies only if it is never less.
constexpr int64_t kParameterAlignment = 256;
constexpr int64_t kPageBytes = Checkpoint::kReadAlignment;

int64_t RoundUp(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

// Whether the stored bytes are what a copy in `dtype` holds, at addresses that operations can read.
bool IsUsableAsStored(const ModelWeights::Module& module, DType dtype) {
  return std::all_of(module.stored.begin(), module.stored.end(), [dtype](const StoredTensor* stored) {
    return stored->dtype == dtype && stored->offset_bytes % SizeOf(dtype) == 0;
  });
}

CopyLayout LayoutAsStored(const ModelWeights::Module& module) {
  CopyLayout layout;
  layout.as_stored = true;
  layout.offsets_bytes.resize(module.stored.size());
  for (const ModelWeights::Run& run : module.runs) {
    const int64_t page = run.begin_bytes / kPageBytes * kPageBytes;
    for (const int parameter : run.parameters) {
      layout.offsets_bytes[parameter] = layout.size_bytes + module.stored[parameter]->offset_bytes - page;
    }
    layout.size_bytes += RoundUp(run.end_bytes - run.begin_bytes, kPageBytes);
    // The same wherever it lies in its first page, so that modules of a shape can use each other's memory.
    if (run.begin_bytes != page) layout.size_bytes += kPageBytes;
  }
  return layout;
}

}  // namespace

CopyLayout LayoutOf(const ModelWeights::Module& module, DType dtype, bool in_host_memory) {
  if (in_host_memory && IsUsableAsStored(module, dtype)) return LayoutAsStored(module);
  CopyLayout layout;
  for (const StoredTensor* stored : module.stored) {
    layout.offsets_bytes.push_back(layout.size_bytes);
    layout.size_bytes += RoundUp(ElementCount(stored->shape) * SizeOf(dtype), kParameterAlignment);
  }
  layout.size_bytes = RoundUp(layout.size_bytes, kPageBytes);
  return layout;
}

}  // namespace ditserve
