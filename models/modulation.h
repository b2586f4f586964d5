#ifndef DITSERVE_MODELS_MODULATION_H_
#define DITSERVE_MODELS_MODULATION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "models/config.h"

namespace ditserve {

// What a timestep alone decides of a pass, whatever the image and the prompt are: shift, scale and gate of both streams
// of each block, shift and scale of the output. In the dtype of activations: of each block the image's, then the text's
// (6 * width each, but of the last block's text 2 * width), at the end the output's (2 * width).
//
// A pass that is given this computes each timestep's row for itself, also where others are computed beside it: so a row
// that is kept has the bits of one that is computed.
struct Modulation {
  std::vector<float> timesteps;  // As TimestepsOf; different ones. Those of the pass' items are among them.
  // Of each: shape [ModulationElements], contiguous, on the pass' device. Undefined: what is made is not kept.
  std::vector<at::Tensor> rows;
  bool known = false;  // The pass reads them, and does without the modules that make them; else it writes them.
};

// Elements of one timestep's row.
int64_t ModulationElements(const QwenImageDiTConfig& config);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_MODULATION_H_
