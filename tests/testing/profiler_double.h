#ifndef DITSERVE_TESTS_TESTING_PROFILER_DOUBLE_H_
#define DITSERVE_TESTS_TESTING_PROFILER_DOUBLE_H_

#include <string>
#include <vector>

namespace ditserve {

// A range of which a profiler was told by NVTX; moments count what was told to it.
struct HeardRange {
  std::string domain, category, message;
  int begun = 0;
  int ended = 0;  // 0: it has not ended.
};

// A program that this is linked with has a profiler, by NVTX's static injection. All that it heard so far, in the order
// in which it began. Thread-safe.
std::vector<HeardRange> HeardRanges();

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_PROFILER_DOUBLE_H_
