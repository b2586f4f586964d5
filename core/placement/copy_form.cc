#include "core/placement/copy_form.h"

#include <algorithm>
#include <bit>
#include <cstddef>

namespace ditserve {
namespace {

// Libraries choose how they compute by the alignment of what they read, up to this one: results are the same wherever a
// copy lies only if it is never less. What is read as it is stored has its file's places instead, the same each time,
// in host memory.
constexpr int64_t kParameterAlignment = 256;
constexpr int64_t kPageBytes = Checkpoint::kReadAlignment;

int64_t RoundUp(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

// What a copy takes has at most a thousandth of waste, and few different sizes. So copies that differ by little more
// than a bias can use each other's memory, and four that of one with four times the weight, and none of it is left
// over.
int64_t SizeFor(int64_t bytes) {
  constexpr uint64_t kStepsToTwice = 1024;
  const auto step = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(bytes)) / kStepsToTwice);
  return RoundUp(bytes, std::max(step, kPageBytes));
}

// Whether the stored bytes are what a copy in `form` holds, at addresses that operations can read.
bool IsUsableAsStored(const ModelWeights::Module& module, const CopyForm& form) {
  return std::equal(module.stored.begin(), module.stored.end(), form.encodings.begin(), form.encodings.end(),
                    [](const StoredTensor* stored, const Encoding& encoding) {
                      return stored->dtype == encoding.dtype && !encoding.scales &&
                             stored->offset_bytes % SizeOf(stored->dtype) == 0;
                    });
}

CopyLayout LayoutAsStored(const ModelWeights::Module& module) {
  CopyLayout layout;
  layout.as_stored = true;
  layout.places.resize(module.stored.size());
  for (const ModelWeights::Run& run : module.runs) {
    const int64_t page = run.begin_bytes / kPageBytes * kPageBytes;
    for (const int parameter : run.parameters) {
      layout.places[parameter].offset_bytes = layout.size_bytes + module.stored[parameter]->offset_bytes - page;
    }
    layout.size_bytes += RoundUp(run.end_bytes - run.begin_bytes, kPageBytes);
    // The same wherever it lies in its first page, so that modules of a shape can use each other's memory.
    if (run.begin_bytes != page) layout.size_bytes += kPageBytes;
  }
  layout.size_bytes = SizeFor(layout.size_bytes);
  return layout;
}

}  // namespace

CopyLayout LayoutOf(const ModelWeights::Module& module, const CopyForm& form, bool in_host_memory) {
  if (in_host_memory && IsUsableAsStored(module, form)) return LayoutAsStored(module);
  CopyLayout layout;
  const auto append = [&layout](int64_t elements, DType dtype) {
    const int64_t at = layout.size_bytes;
    layout.size_bytes += RoundUp(elements * SizeOf(dtype), kParameterAlignment);
    return at;
  };
  for (size_t i = 0; i < module.stored.size(); ++i) {
    const std::vector<int64_t>& shape = module.stored[i]->shape;
    const Encoding& encoding = form.encodings[i];
    CopyLayout::Place& place = layout.places.emplace_back();
    place.offset_bytes = append(ElementCount(shape), encoding.dtype);
    if (encoding.scales) {
      place.scales_offset_bytes = append(ScaleCount(*encoding.scales, shape), encoding.scales->dtype);
    }
  }
  layout.size_bytes = SizeFor(layout.size_bytes);
  return layout;
}

}  // namespace ditserve
