#include "models/kernels/tile_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define DITSERVE_KERNEL __attribute__((target("avx2,fma,f16c")))
#define DITSERVE_LANES 8
#include "models/kernels/tile_vectors.inc"

namespace ditserve {
namespace {

// There are 16 vectors.
constexpr int64_t kTileRows = 6, kDotRows = 4, kDotColumns = 2;
constexpr int64_t kFewRows = 24;

DITSERVE_INLINE Floats MultiplyAdd(Floats a, Floats b, Floats c) {
  return Floats(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
}

DITSERVE_INLINE Words WidenBytes(const std::byte* from) {
  return Words(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

DITSERVE_INLINE Words WidenHalfWords(const std::byte* from) {
  return Words(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

// float16 to float32, of the low half of each word.
DITSERVE_INLINE Floats DecodeHalfs(Words elements) {
  const __m256i low = __m256i(elements & 0xffffu);
  return Floats(_mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1))));
}

}  // namespace
}  // namespace ditserve

#include "models/kernels/tile_kernels.inc"

namespace ditserve {

const TileKernels& Avx2TileKernels(DType arithmetic, DType weights) { return KernelsFor(arithmetic, weights); }

}  // namespace ditserve

#endif
