#include "models/kernels/tile_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define DITSERVE_KERNEL __attribute__((target("avx512f,avx512bf16")))
#define DITSERVE_LANES 16
#define DITSERVE_HAS_PAIRS
#include "models/kernels/tile_avx512_bf16.inc"
#include "models/kernels/tile_kernels.inc"

namespace ditserve {

const TileKernels& Avx512BFloat16TileKernels() { return kBFloat16Kernels<InBFloat16>; }

}  // namespace ditserve

#endif
