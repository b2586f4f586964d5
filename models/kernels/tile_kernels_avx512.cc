#include "models/kernels/tile_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define DITSERVE_KERNEL __attribute__((target("avx512f")))
#define DITSERVE_LANES 16
#include "models/kernels/tile_vectors.inc"

namespace ditserve {
namespace {

// There are 32 vectors.
constexpr int64_t kTileRows = 12, kDotRows = 6, kDotColumns = 4;
constexpr int64_t kFewRows = 96;

DITSERVE_INLINE Floats MultiplyAdd(Floats a, Floats b, Floats c) {
  return Floats(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
}

// Masked, with all lanes: GCC 12 warns of the undefined operand that the plain conversions have.
DITSERVE_INLINE Words WidenBytes(const std::byte* from) {
  return Words(_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

DITSERVE_INLINE Words WidenHalfWords(const std::byte* from) {
  return Words(_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}

// float16 to float32, of the low half of each word.
DITSERVE_INLINE Floats DecodeHalfs(Words elements) {
  return Floats(_mm512_maskz_cvtph_ps(0xffff, _mm512_maskz_cvtepi32_epi16(0xffff, __m512i(elements))));
}

}  // namespace
}  // namespace ditserve

#include "models/kernels/tile_kernels.inc"

namespace ditserve {

const TileKernels& Avx512TileKernels(DType dtype) { return KernelsFor(dtype); }

}  // namespace ditserve

#endif
