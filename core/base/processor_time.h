#ifndef DITSERVE_CORE_BASE_PROCESSOR_TIME_H_
#define DITSERVE_CORE_BASE_PROCESSOR_TIME_H_

#include <ctime>

#include "absl/time/time.h"

namespace ditserve {

// What a thread has taken of processors so far, by its clock; without one, the calling thread.
inline absl::Duration ProcessorTime(clockid_t of_thread = CLOCK_THREAD_CPUTIME_ID) {
  timespec taken = {};
  clock_gettime(of_thread, &taken);
  return absl::DurationFromTimespec(taken);
}

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_PROCESSOR_TIME_H_
