#ifndef DITSERVE_MODELS_ROPE_H_
#define DITSERVE_MODELS_ROPE_H_

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

namespace ditserve {

// Rotary position embedding of the joint sequence: the text's tokens, then the image's, rows of patches.
//
// `text_positions`: float32, shape [T], index of each token in its prompt. `axes`: dimensions of frame, height, width.
// Image positions are centred, text begins at max(rows / 2, columns / 2). Computed in float32 on the CPU as the
// references do (DiffSynth-Studio 2.1.12 and diffusers 0.42.1, QwenEmbedRope), for any size.
// Returns complex64, shape [T + rows * columns, sum(axes) / 2].
at::Tensor JointRotary(const at::Tensor& text_positions, int64_t rows, int64_t columns,
                       const std::array<int64_t, 3>& axes);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_ROPE_H_
