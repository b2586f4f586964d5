#ifndef DITSERVE_MODELS_OPS_H_
#define DITSERVE_MODELS_OPS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "models/config.h"
#include "models/weights.h"

namespace ditserve {

// One tensor an item: items of a batch have prompts of different lengths, and none's result depends on the others. Rows
// are tokens: shape [tokens, channels].
using Batch = std::vector<at::Tensor>;

// x W^T + b for each item.
Batch Linear(const Batch& x, const Weights& linear);

// The same, written to existing memory.
void LinearInto(const Batch& x, const Weights& linear, const Batch& out);

// Rows that are multiplied at a time: fewer than MatmulFewRows on any processor.
inline constexpr size_t kJoinedRows = 23;

// The same for single rows, none of which depends on how many others there are.
void LinearEachInto(const Batch& rows, const Weights& linear, const Batch& out);

Batch Silu(const Batch& x);

// x / rms(x) over groups of as many channels as the norm has weights, times the weights; in place. The sum of squares
// is taken in float32.
void RmsNormInPlace(const Batch& x, const Weights& norm);

// LayerNorm(x) * (1 + scale) + shift, without weights of its own. scale and shift: shape [1, channels].
Batch ModulatedLayerNorm(const Batch& x, const Batch& scale, const Batch& shift);

// Linear(ModulatedLayerNorm(x, scale, shift)). On a CPU the normed rows are there some at a time.
Batch ModulatedLinear(const Batch& x, const Batch& scale, const Batch& shift, const Weights& linear);

// The MLP's activation, in place: x * sigmoid(1.702 x) or tanh GELU.
void GeluInPlace(const Batch& x, Numerics numerics);

// x += gate * y, where y may be overwritten. gate: shape [1, channels].
void AddGated(const Batch& x, const Batch& gate, const Batch& y);

// x += gate * Linear(y), where y may be overwritten. On a CPU the product's rows are there some at a time.
void AddGatedLinear(const Batch& x, const Batch& gate, const Batch& y, const Weights& linear);

// Turns neighbouring channels of each head as complex numbers, in float32 and in place.
// x: [tokens, heads * D]; rotary: complex64 [tokens, D / 2].
void RotateInPlace(const at::Tensor& x, const at::Tensor& rotary);

// Softmax attention of each head over all tokens. q, k, v and the result: [tokens, heads * head_dim].
at::Tensor Attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t head_dim);

constexpr int64_t kTimeChannels = 256;

// Cosines, then sines, of 1000 timestep * 10000^(-k/128), in float32 whatever the timestep's dtype. timestep: one
// element. Shape [1, kTimeChannels].
at::Tensor TimeChannels(const at::Tensor& timestep);

// How many elements of a contiguous tensor are infinite or NaN; takes no memory that grows with it.
int64_t CountNonFinite(const at::Tensor& x);

// Chunk `index`, of `width` channels, for each item; no copy.
Batch Chunk(const Batch& x, int64_t width, int64_t index);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_OPS_H_
