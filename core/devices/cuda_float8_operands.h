#ifndef DITSERVE_CORE_DEVICES_CUDA_FLOAT8_OPERANDS_H_
#define DITSERVE_CORE_DEVICES_CUDA_FLOAT8_OPERANDS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ditserve {

// What LibTorch's product of float8 takes beside the weight, and what it is made of. All of it is device memory; rows
// are of a multiple of 16 elements and begin at multiples of 16 bytes.
struct Float8Operands {
  const uint16_t* x;  // bfloat16, [rows, elements], `stride` elements from row to row.
  int64_t stride;
  int64_t rows;
  int64_t elements;
  const uint8_t* bias;  // float8, [columns]
  int64_t columns;

  uint8_t* quantized;    // float8, [rows, elements]: x as core/devices/float8_rows.h makes it.
  float* row_scales;     // [rows]
  float* column_scales;  // [columns]: 1, as weights are not scaled.
  uint16_t* wide_bias;   // bfloat16, [columns]
};

// Enqueues on `stream` the one kernel that makes them.
cudaError_t CudaMakeFloat8Operands(const Float8Operands& operands, cudaStream_t stream);

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_CUDA_FLOAT8_OPERANDS_H_
