#ifndef DITSERVE_CORE_BASE_PROFILER_RANGE_H_
#define DITSERVE_CORE_BASE_PROFILER_RANGE_H_

#include <cstdint>
#include <string>
#include <utility>

namespace ditserve {

// A range of a profiler's timeline, of the domain "ditserve" and the category that its stage names: from when it is
// made until it ends, on whichever thread. Profilers listen by NVTX (https://nvidia.github.io/NVTX), as Nsight Systems
// does; where none does, a range costs a look at a pointer.
//
// Thread safety: thread-compatible.
class ProfilerRange {
 public:
  // What a request, or a module on its way, does meanwhile.
  enum Stage : uint8_t { kQueue, kStall, kCopy, kCompute };

  ProfilerRange() = default;  // None.
  // `of`: the model or the module.
  ProfilerRange(Stage stage, const std::string& of);
  ProfilerRange(ProfilerRange&& other) noexcept : id_(std::exchange(other.id_, 0)) {}
  ProfilerRange& operator=(ProfilerRange&& other) noexcept {
    std::swap(id_, other.id_);
    other.End();
    return *this;
  }
  ~ProfilerRange() { End(); }

 private:
  void End();

  uint64_t id_ = 0;  // 0: none, or nobody listens.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_PROFILER_RANGE_H_
