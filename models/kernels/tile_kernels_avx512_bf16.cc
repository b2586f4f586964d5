#include "models/kernels/tile_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define DITSERVE_KERNEL __attribute__((target("avx512f,avx512bf16")))
#define DITSERVE_LANES 16
#define DITSERVE_HAS_PAIRS
#include "models/kernels/tile_avx512.inc"

namespace ditserve {
namespace {

// Intel's manual: the products of the upper halves are added first; each addition is fused with its product and rounds
// to the nearest; what is too small for a full mantissa is taken and written as zero.
DITSERVE_INLINE Floats AddPairs(Floats a, Floats b, Floats sums) {
  return Floats(_mm512_dpbf16_ps(__m512(sums), __m512bh(a), __m512bh(b)));
}

DITSERVE_INLINE Words RoundToBFloat16(Floats values) {
  return Words(_mm512_maskz_cvtepu16_epi32(0xffff, __m256i(_mm512_cvtneps_pbh(__m512(values)))));
}

}  // namespace
}  // namespace ditserve

#include "models/kernels/tile_kernels.inc"

namespace ditserve {

const TileKernels& Avx512BFloat16TileKernels() { return kBFloat16Kernels<InBFloat16>; }

}  // namespace ditserve

#endif
