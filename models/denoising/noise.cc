#include "models/denoising/noise.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>

#include "absl/strings/str_cat.h"
#include "core/base/error_details.h"

namespace ditserve {
namespace {

constexpr int64_t kLatentPixels = 8, kPatchPixels = 16;

absl::Status CheckPixels(absl::string_view field, int64_t pixels) {
  if (pixels > 0 && pixels % kPatchPixels == 0) return absl::OkStatus();
  return FieldError(field, absl::StrCat(pixels, " pixels, expected a multiple of ", kPatchPixels));
}

}  // namespace

absl::Status CheckSeeds(size_t seeds, int64_t batch) {
  if (seeds == 1 || static_cast<int64_t>(seeds) == batch) return absl::OkStatus();
  return FieldError("seeds", absl::StrCat(seeds, " for a batch of ", batch, ", expected 1, or one for each item"));
}

absl::StatusOr<at::Tensor> SeededNoise(absl::Span<const uint64_t> seeds, int64_t batch, int64_t channels,
                                       int64_t height, int64_t width, at::ScalarType dtype) {
  if (batch < 1) return FieldError("batch", absl::StrCat(batch, ", expected 1 or more"));
  if (absl::Status status = CheckSeeds(seeds.size(), batch); !status.ok()) return status;
  if (absl::Status status = CheckPixels("height", height); !status.ok()) return status;
  if (absl::Status status = CheckPixels("width", width); !status.ok()) return status;

  const at::Tensor noise = at::empty({batch, channels, height / kLatentPixels, width / kLatentPixels}, dtype);
  const int64_t count = static_cast<int64_t>(seeds.size()), items = batch / count;  // Of each seed.
  for (int64_t i = 0; i < count; ++i) {
    noise.narrow(0, i * items, items)
        .normal_(0, 1, at::make_generator<at::CPUGeneratorImpl>(seeds[static_cast<size_t>(i)]));
  }
  return noise;
}

}  // namespace ditserve
