#ifndef DITSERVE_MODELS_KERNELS_MATMUL_H_
#define DITSERVE_MODELS_KERNELS_MATMUL_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "core/base/dtype.h"
#include "models/kernels/tile_kernels.h"

namespace ditserve {

// What a Linear holds: weight of shape [out, in], row-major, and bias of shape [out] or null, in any weight dtype and
// at any address.
struct LinearParameters {
  const std::byte* weight;
  const std::byte* bias;
  DType dtype;
  int64_t out;
  int64_t in;
};

// A matrix to multiply. x: shape [rows, in], 1 <= in; y: shape [rows, out], `y_stride` elements from row to row. No y
// overlaps anything else.
template <typename Element>
struct Factor {
  Rows<Element> x;
  Element* y;
  int64_t y_stride;
};
using FloatFactor = Factor<float>;
using BFloat16Factor = Factor<uint16_t>;

// y = x weight^T + bias of each factor in float32, from weights in the dtype they are kept in: they are converted on
// their way into the processor's cache, once for factors that have no more than ProductBlocks::sum_rows together, so
// that no float32 copy of them takes memory or time to write. The method is that of Goto and van de Geijn (Anatomy of
// High-Performance Matrix Multiplication, 2008); where a factor has fewer rows than MatmulFewRows, rearranging the
// weight would not pay, and it is read as it lies.
//
// A row of y depends on its row of x, on whether its factor has few rows, and on `isa`: not on the other rows and
// factors, nor on the number of threads. Its sums are added up in blocks along `in`, in order.
// Thread-safe. Allocates nothing that grows with the matrices but what each thread keeps.
void MultiplyFloat32(absl::Span<const FloatFactor> factors, const LinearParameters& linear, Isa isa = Isas().back());

int64_t MatmulFewRows(Isa isa);

// The same in bfloat16, x, weight, bias and y, which are multiplied exactly and added up in float32, as VDPBF16PS does:
// of each pair of neighbours along `in` the second one's product first, each rounded as it is added. Blocks of 768
// along `in` are added up by themselves and then to the bias, in order; y is rounded at the end. Numbers too small for
// a full mantissa may be taken as zero. With kAmxBFloat16 they are added up as TDPBF16PS does it: of 32 along `in` the
// even and the odd ones by themselves, in order, then the two sums, then that to what was added up before, which begins
// with the bias.
// A row of y depends on its row of x alone and, but for such numbers, on whether `isa` fuses products with sums or is
// kAmxBFloat16: not on how many rows there are.
void MultiplyBFloat16(absl::Span<const BFloat16Factor> factors, const LinearParameters& linear,
                      Isa isa = Isas().back());

}  // namespace ditserve

#endif  // DITSERVE_MODELS_KERNELS_MATMUL_H_
