#include "models/kernels/tile_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define DITSERVE_KERNEL __attribute__((target("avx512f")))
#define DITSERVE_LANES 16
#include "models/kernels/tile_avx512.inc"
#include "models/kernels/tile_kernels.inc"

namespace ditserve {

const TileKernels& Avx512TileKernels(DType arithmetic, DType weights) { return KernelsFor(arithmetic, weights); }

}  // namespace ditserve

#endif
