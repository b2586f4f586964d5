// The compiler's vector types, for a file that defines before: kLanes, the floats in a vector, and DITSERVE_KERNEL, the
// attributes of a function for its instruction set. Everything here and in models/matmul_kernels_impl.h is in an unnamed
// namespace, so that nothing compiled for one processor is linked into code for another.
#include <cstdint>
#include <cstring>

#define DITSERVE_INLINE DITSERVE_KERNEL __attribute__((always_inline)) inline

namespace ditserve {
namespace {

using Floats = float __attribute__((vector_size(kLanes * 4)));
using Words = uint32_t __attribute__((vector_size(kLanes * 4)));

}  // namespace
}  // namespace ditserve
