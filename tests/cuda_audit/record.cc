#include "tests/cuda_audit/record.h"

namespace ditserve::cuda_audit {

Record& Record::Get() {
  static auto* const record = new Record();
  return *record;
}

void Record::Clear() {
  const absl::MutexLock lock(&mutex_);
  gemms_.clear();
  refused_.clear();
}

void Record::Add(const Gemm& gemm) {
  const absl::MutexLock lock(&mutex_);
  gemms_.push_back(gemm);
}

void Record::AddRefused(const std::string& function) {
  const absl::MutexLock lock(&mutex_);
  ++refused_[function];
}

std::vector<Gemm> Record::gemms() const {
  const absl::MutexLock lock(&mutex_);
  return gemms_;
}

std::map<std::string, int64_t> Record::refused() const {
  const absl::MutexLock lock(&mutex_);
  return refused_;
}

}  // namespace ditserve::cuda_audit

// What generated stand-ins call. 15 is cuBLAS' CUBLAS_STATUS_NOT_SUPPORTED, and no library's success.
extern "C" int DitserveStubRefuses(const char* function) {
  ditserve::cuda_audit::Record::Get().AddRefused(function);
  return 15;
}
