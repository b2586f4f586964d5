// The compiler's vector types, for a file that defines before: DITSERVE_KERNEL, the attributes of a function for its
// instruction set, and DITSERVE_LANES, the floats in a vector. Everything here and in models/matmul_kernels_impl.h is
// in an unnamed namespace, so that nothing compiled for one processor is linked into code for another.
#include <cstdint>
#include <cstring>

#define DITSERVE_INLINE DITSERVE_KERNEL __attribute__((always_inline)) inline

namespace ditserve {
namespace {

constexpr int kLanes = DITSERVE_LANES;

using Floats = float __attribute__((vector_size(kLanes * 4)));
using Words = uint32_t __attribute__((vector_size(kLanes * 4)));

}  // namespace
}  // namespace ditserve
