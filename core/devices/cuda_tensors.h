#ifndef DITSERVE_CORE_DEVICES_CUDA_TENSORS_H_
#define DITSERVE_CORE_DEVICES_CUDA_TENSORS_H_

#include <memory>

#include "core/devices/tensor_memory.h"

namespace ditserve {

// Makes LibTorch ask us for the memory of its CUDA tensors, in the place of its caching allocator, of which nothing was
// asked before.
void InstallCudaTensors();

// CUDA tensors that the calling thread makes live in `memory` from now on; null: it may make none.
void KeepCudaTensorsIn(std::shared_ptr<TensorMemory> memory);

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_CUDA_TENSORS_H_
