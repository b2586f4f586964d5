// cuBLASLt that multiplies nothing, finds an algorithm for everything, and records what it is asked.
// (The wheels that LibTorch needs to run on a CPU bring no header of cuBLASLt; what is asked here is in CUDA 13's.)
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include "tests/cuda_audit/record.h"

namespace {

using ditserve::cuda_audit::Gemm;
using ditserve::cuda_audit::Record;

// Any of cuBLASLt's descriptors.
struct Descriptor {
  int type = 0;
  uint64_t rows = 0, columns = 0;
  std::map<int, std::vector<char>> attributes;

  template <typename Value>
  Value Get(int attribute, Value otherwise) const {
    const auto found = attributes.find(attribute);
    if (found == attributes.end()) return otherwise;
    Value value{};
    std::memcpy(&value, found->second.data(), std::min(sizeof value, found->second.size()));
    return value;
  }
};

// Numbers of attributes in cublasLt.h.
constexpr int kTransposesA = 3, kReductionSchemes = 3, kAlignmentOfA = 5, kScaleModeOfA = 31;

struct Heuristic {  // cublasLtMatmulHeuristicResult_t
  uint64_t algorithm[8];
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};

// What was asked for when an algorithm was looked for, just before its product.
thread_local Descriptor preference;

int Set(void* of, int attribute, const void* value, size_t bytes) {
  const char* const begin = static_cast<const char*>(value);
  static_cast<Descriptor*>(of)->attributes[attribute].assign(begin, begin + bytes);
  return 0;
}
uint64_t AddressOf(const void* data) { return reinterpret_cast<uintptr_t>(data); }

int Destroy(void* descriptor) {
  delete static_cast<Descriptor*>(descriptor);
  return 0;
}

}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return 130000; }

int cublasLtMatmulDescCreate(void** made, int /*compute_type*/, int /*scale_type*/) {
  return *made = new Descriptor, 0;
}
int cublasLtMatmulDescDestroy(void* descriptor) { return Destroy(descriptor); }
int cublasLtMatmulDescSetAttribute(void* of, int attribute, const void* value, size_t bytes) {
  return Set(of, attribute, value, bytes);
}

int cublasLtMatrixLayoutCreate(void** made, int type, uint64_t rows, uint64_t columns, int64_t /*leading_dimension*/) {
  return *made = new Descriptor{type, rows, columns, {}}, 0;
}
int cublasLtMatrixLayoutDestroy(void* descriptor) { return Destroy(descriptor); }
int cublasLtMatrixLayoutSetAttribute(void* of, int attribute, const void* value, size_t bytes) {
  return Set(of, attribute, value, bytes);
}

int cublasLtMatmulPreferenceCreate(void** made) { return *made = new Descriptor, 0; }
int cublasLtMatmulPreferenceDestroy(void* descriptor) { return Destroy(descriptor); }
int cublasLtMatmulPreferenceSetAttribute(void* of, int attribute, const void* value, size_t bytes) {
  return Set(of, attribute, value, bytes);
}

int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, const void* preferred, int /*most*/,
                                   Heuristic* found, int* count) {
  preference = *static_cast<const Descriptor*>(preferred);
  *found = {};
  return *count = 1, 0;
}

int cublasLtMatmul(void*, const void* product, const void*, const void* a_data, const void* a_layout,
                   const void* b_data, const void* b_layout, const void*, const void*, const void*, void* d_data,
                   const void* d_layout, const void*, void*, size_t workspace_bytes, void* stream) {
  const auto &a = *static_cast<const Descriptor*>(a_layout), &b = *static_cast<const Descriptor*>(b_layout),
             &d = *static_cast<const Descriptor*>(d_layout);
  const auto& asked = *static_cast<const Descriptor*>(product);
  const bool transposes = asked.Get<int>(kTransposesA, 0) != 0;
  Gemm gemm{d.rows,
            d.columns,
            transposes ? a.rows : a.columns,
            {a.type, b.type, d.type},
            {},
            0,
            workspace_bytes,
            stream,
            {asked.Get<int>(kScaleModeOfA, 0), asked.Get<int>(kScaleModeOfA + 1, 0)},
            {AddressOf(a_data), AddressOf(b_data), AddressOf(d_data)}};
  for (size_t i = 0; i < gemm.alignments.size(); ++i) {
    gemm.alignments[i] = preference.Get<uint32_t>(kAlignmentOfA + static_cast<int>(i), 0);
  }
  gemm.reduction_schemes = preference.Get<uint32_t>(kReductionSchemes, ~0u);
  Record::Get().Add(gemm);
  return 0;
}

}  // extern "C"
