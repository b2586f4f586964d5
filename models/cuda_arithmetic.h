#ifndef DITSERVE_MODELS_CUDA_ARITHMETIC_H_
#define DITSERVE_MODELS_CUDA_ARITHMETIC_H_

namespace ditserve {

// Makes LibTorch's operations on CUDA devices give the same bits for the same inputs, on one kind of card and with one
// version of its libraries, and compute in the precision that a profile asks for. It is the process's; what runs on the
// CPU does not change. To be called before operations are issued.
void FixCudaArithmetic();

}  // namespace ditserve

#endif  // DITSERVE_MODELS_CUDA_ARITHMETIC_H_
