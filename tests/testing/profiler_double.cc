#include "tests/testing/profiler_double.h"

#define NVTX_NO_IMPL  // Of a profiler, not of a program.
#include <nvtx3/nvToolsExt.h>

#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace ditserve {
namespace {

struct Heard {
  absl::Mutex mutex;
  std::vector<std::string> domains ABSL_GUARDED_BY(mutex);
  std::map<std::pair<size_t, uint32_t>, std::string> categories ABSL_GUARDED_BY(mutex);
  std::vector<HeardRange> ranges ABSL_GUARDED_BY(mutex);
  int told ABSL_GUARDED_BY(mutex) = 0;
};

Heard& Of() {
  static auto* const heard = new Heard;  // Threads may tell of ranges until the last moment.
  return *heard;
}

// Handles are places in `domains`, from 1.
size_t PlaceOf(nvtxDomainHandle_t domain) { return reinterpret_cast<size_t>(domain) - 1; }

nvtxDomainHandle_t CreateDomain(const char* name) {
  const absl::MutexLock lock(&Of().mutex);
  Of().domains.emplace_back(name);
  return reinterpret_cast<nvtxDomainHandle_t>(Of().domains.size());
}

void NameCategory(nvtxDomainHandle_t domain, uint32_t category, const char* name) {
  const absl::MutexLock lock(&Of().mutex);
  Of().categories[{PlaceOf(domain), category}] = name;
}

nvtxRangeId_t StartRange(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* attributes) {
  const absl::MutexLock lock(&Of().mutex);
  Of().ranges.push_back({Of().domains[PlaceOf(domain)], Of().categories[{PlaceOf(domain), attributes->category}],
                         attributes->message.ascii, ++Of().told});
  return Of().ranges.size();
}

void EndRange(nvtxDomainHandle_t, nvtxRangeId_t range) {
  const absl::MutexLock lock(&Of().mutex);
  Of().ranges[range - 1].ended = ++Of().told;
}

int Inject(NvtxGetExportTableFunc_t get_table) {
  const auto* callbacks = static_cast<const NvtxExportTableCallbacks*>(get_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned int size = 0;
  if (callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size) == 0) return 0;
  *table[NVTX_CBID_CORE2_DomainCreateA] = reinterpret_cast<NvtxFunctionPointer>(&CreateDomain);
  *table[NVTX_CBID_CORE2_DomainNameCategoryA] = reinterpret_cast<NvtxFunctionPointer>(&NameCategory);
  *table[NVTX_CBID_CORE2_DomainRangeStartEx] = reinterpret_cast<NvtxFunctionPointer>(&StartRange);
  *table[NVTX_CBID_CORE2_DomainRangeEnd] = reinterpret_cast<NvtxFunctionPointer>(&EndRange);
  return 1;
}

}  // namespace

std::vector<HeardRange> HeardRanges() {
  const absl::MutexLock lock(&Of().mutex);
  return Of().ranges;
}

}  // namespace ditserve

extern "C" {
extern NvtxInitializeInjectionNvtxFunc_t InitializeInjectionNvtx2_fnptr;  // By which programs find it.
NvtxInitializeInjectionNvtxFunc_t InitializeInjectionNvtx2_fnptr = &ditserve::Inject;
}
