#include "core/base/profiler_range.h"

#include <nvtx3/nvToolsExt.h>

#include <array>

namespace ditserve {
namespace {

constexpr std::array kStageNames = {"queue", "stall", "copy", "compute"};

uint32_t CategoryOf(size_t stage) { return static_cast<uint32_t>(stage) + 1; }  // 0 is none.

nvtxDomainHandle_t Domain() {
  static const nvtxDomainHandle_t domain = [] {
    const nvtxDomainHandle_t made = nvtxDomainCreateA("ditserve");
    for (size_t i = 0; i < kStageNames.size(); ++i) {
      nvtxDomainNameCategoryA(made, CategoryOf(i), kStageNames[i]);
    }
    return made;
  }();
  return domain;
}

}  // namespace

ProfilerRange::ProfilerRange(Stage stage, const std::string& of) {
  nvtxEventAttributes_t attributes = {};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.category = CategoryOf(stage);
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = of.c_str();
  id_ = nvtxDomainRangeStartEx(Domain(), &attributes);
}

void ProfilerRange::End() {
  if (id_ != 0) nvtxDomainRangeEnd(Domain(), std::exchange(id_, 0));
}

}  // namespace ditserve
