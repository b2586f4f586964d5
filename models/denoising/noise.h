#ifndef DITSERVE_MODELS_DENOISING_NOISE_H_
#define DITSERVE_MODELS_DENOISING_NOISE_H_

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace ditserve {

// The noise that a loop starts from: torch.randn on the CPU, in `dtype` (float32, bfloat16 or float16), of
// torch.Generator("cpu").manual_seed(seed). The same bits as diffusers' randn_tensor and, for one item,
// DiffSynth-Studio's generate_noise give on this processor: those without AVX2 have other last bits than those with it.
// Shape [batch, channels, height / 8, width / 8].
//
// One seed makes the whole batch, as one after the other; or each item has its own, and equals that item alone. Noise
// in bfloat16 is not the float32 noise rounded, and seeds that differ by 2^32 give the same: so it is in LibTorch.
//
// Errors: InvalidArgument of field "seeds", "batch", "height" or "width": not 1 or `batch` seeds, a batch below 1,
// pixels that are not a multiple of 16. How large a picture may be is for the caller to say. Thread safety: no state is
// shared.
absl::StatusOr<at::Tensor> SeededNoise(absl::Span<const uint64_t> seeds, int64_t batch, int64_t channels,
                                       int64_t height, int64_t width, at::ScalarType dtype);

// InvalidArgument of field "seeds": so many are not 1 or `batch`.
absl::Status CheckSeeds(size_t seeds, int64_t batch);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_DENOISING_NOISE_H_
