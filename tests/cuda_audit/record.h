#ifndef DITSERVE_TESTS_CUDA_AUDIT_RECORD_H_
#define DITSERVE_TESTS_CUDA_AUDIT_RECORD_H_

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace ditserve::cuda_audit {

// A product D = A B + C as cuBLASLt is asked for it. Columns are contiguous there: what LibTorch calls x W^T is W^T x.
struct Gemm {
  uint64_t m, n, k;
  std::array<int, 3> types;            // cudaDataType_t of A, B, D.
  std::array<uint32_t, 4> alignments;  // Bytes, of A, B, C, D, as far as LibTorch tells them.
  uint32_t reduction_schemes;          // A mask of those that may be used.
  uint64_t workspace_bytes;
  void* stream;
  std::array<int, 2> scale_modes;    // cublasLtMatmulMatrixScale_t of A and B.
  std::array<uint64_t, 3> begin_at;  // Addresses of A, B, D.
};

// What the stand-ins for CUDA's libraries were asked.
//
// Thread safety: thread-safe.
class Record {
 public:
  // The process's.
  static Record& Get();

  void Clear() ABSL_LOCKS_EXCLUDED(mutex_);
  void Add(const Gemm& gemm) ABSL_LOCKS_EXCLUDED(mutex_);
  void AddRefused(const std::string& function) ABSL_LOCKS_EXCLUDED(mutex_);

  std::vector<Gemm> gemms() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Calls that nothing stands in for, by function.
  std::map<std::string, int64_t> refused() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  mutable absl::Mutex mutex_;
  std::vector<Gemm> gemms_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, int64_t> refused_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ditserve::cuda_audit

#endif  // DITSERVE_TESTS_CUDA_AUDIT_RECORD_H_
