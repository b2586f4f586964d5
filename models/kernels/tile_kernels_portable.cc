#include "models/kernels/tile_kernels.h"

#define DITSERVE_KERNEL
#define DITSERVE_LANES 4
#include "models/kernels/tile_vectors.inc"

namespace ditserve {
namespace {

// There are at least 16 vectors.
constexpr int64_t kTileRows = 4, kDotRows = 3, kDotColumns = 2;
constexpr int64_t kFewRows = 24;

DITSERVE_INLINE Floats MultiplyAdd(Floats a, Floats b, Floats c) { return a * b + c; }

template <typename Element>
DITSERVE_INLINE Words Widen(const std::byte* from) {
  Element __attribute__((vector_size(kLanes * sizeof(Element)))) elements;
  std::memcpy(&elements, from, sizeof elements);
  return __builtin_convertvector(elements, Words);
}

DITSERVE_INLINE Words WidenBytes(const std::byte* from) { return Widen<uint8_t>(from); }
DITSERVE_INLINE Words WidenHalfWords(const std::byte* from) { return Widen<uint16_t>(from); }

// float16 to float32, of the low half of each word.
DITSERVE_INLINE Floats DecodeHalfs(Words elements) {
  const Words magnitude = (elements & 0x7fffu) << 13;
  // Finite values are 2^112 too small, denormals of float32 among them; infinity and NaN have the highest exponent.
  const Floats finite = Floats(magnitude) * 0x1p112f;
  const Words special = magnitude | 0x7f800000u | (magnitude > 0x0f800000u ? 0x400000u + Words{} : Words{});
  return Floats(((elements & 0x8000u) << 16) | (magnitude < 0x0f800000u ? Words(finite) : special));
}

}  // namespace
}  // namespace ditserve

#include "models/kernels/tile_kernels.inc"

namespace ditserve {

const TileKernels& PortableTileKernels(DType arithmetic, DType weights) { return KernelsFor(arithmetic, weights); }

}  // namespace ditserve
