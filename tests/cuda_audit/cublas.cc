// What LibTorch asks of cuBLAS before it asks cuBLASLt for products. Everything else of cuBLAS refuses.
// (The wheels that LibTorch needs to run on a CPU bring no header of cuBLAS; its calls are C.)
extern "C" {

using Status = int;
constexpr Status kSuccess = 0;

Status cublasCreate_v2(void** handle) {
  static char any;
  return *handle = &any, kSuccess;
}
Status cublasDestroy_v2(void*) { return kSuccess; }
Status cublasSetStream_v2(void*, void*) { return kSuccess; }
Status cublasSetWorkspace_v2(void*, void*, unsigned long) { return kSuccess; }
Status cublasSetMathMode(void*, int) { return kSuccess; }
Status cublasGetMathMode(void*, int* mode) { return *mode = 0, kSuccess; }
Status cublasSetPointerMode_v2(void*, int) { return kSuccess; }
Status cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0, kSuccess; }

}  // extern "C"
