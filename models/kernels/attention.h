#ifndef DITSERVE_MODELS_KERNELS_ATTENTION_H_
#define DITSERVE_MODELS_KERNELS_ATTENTION_H_

#include <cstdint>

#include "models/kernels/tile_kernels.h"

namespace ditserve {

constexpr int64_t kMaxHeadDim = 256;

// q, k and v: shape [tokens, heads * head_dim], 1 <= tokens, head_dim <= kMaxHeadDim, each head's channels side by
// side. q may have other rows than k and v, which have equally many.
template <typename Element>
struct AttentionInputs {
  Rows<Element> q, k, v;
  int64_t heads;
  int64_t head_dim;
};

// out = softmax(q k^T / sqrt(head_dim)) v of each head, in float32. No more than some keys' scores exist at a time: the
// softmax is taken block by block of keys, as FlashAttention does (Dao et al., 2022).
//
// out: shape of q, `out_stride` elements from row to row; overlaps no input.
// A row of out depends on its row of q, on k, v and `isa`: not on other rows of q, nor on the number of threads.
// Thread-safe. Allocates nothing but what each thread keeps.
void AttendFloat32(const AttentionInputs<float>& inputs, float* out, int64_t out_stride, Isa isa = Isas().back());

// The same in bfloat16, with products as MultiplyBFloat16's. The softmax is in float32, its weights are rounded, and so
// is out.
void AttendBFloat16(const AttentionInputs<uint16_t>& inputs, uint16_t* out, int64_t out_stride,
                    Isa isa = Isas().back());

}  // namespace ditserve

#endif  // DITSERVE_MODELS_KERNELS_ATTENTION_H_
