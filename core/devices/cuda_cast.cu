#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>

#include "core/devices/cuda_cast.h"

namespace ditserve {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1024;

__device__ float Load(const void* source, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kBFloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(source)[i]);
    case DType::kFloat16:
      return __half2float(static_cast<const __half*>(source)[i]);
    case DType::kFloat8E4M3:
      return static_cast<float>(static_cast<const __nv_fp8_e4m3*>(source)[i]);
    default:
      return static_cast<const float*>(source)[i];
  }
}

// Too large for float8 becomes its largest value, as on the CPU.
__device__ void Store(float value, void* target, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(target)[i] = __float2bfloat16_rn(value);
      return;
    case DType::kFloat16:
      static_cast<__half*>(target)[i] = __float2half_rn(value);
      return;
    case DType::kFloat8E4M3:
      static_cast<__nv_fp8_storage_t*>(target)[i] = __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
      return;
    default:
      static_cast<float*>(target)[i] = value;
  }
}

__device__ float Round(float value, DType dtype) {
  uint32_t rounded;
  Store(value, &rounded, dtype, 0);
  return Load(&rounded, dtype, 0);
}

__global__ void CastKernel(const void* source, DType from, Roundings through, void* target, DType to, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    float value = Load(source, from, i);
    for (int r = 0; r < through.count; ++r) value = Round(value, through.dtypes[r]);
    Store(value, target, to, i);
  }
}

}  // namespace

cudaError_t CudaCast(const void* source, DType from, const Roundings& through, void* target, DType to, int64_t count,
                     cudaStream_t stream) {
  const int64_t blocks = std::min((count + kThreads - 1) / kThreads, kMaxBlocks);
  CastKernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(source, from, through, target, to, count);
  return cudaGetLastError();
}

}  // namespace ditserve
