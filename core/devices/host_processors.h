#ifndef DITSERVE_CORE_DEVICES_HOST_PROCESSORS_H_
#define DITSERVE_CORE_DEVICES_HOST_PROCESSORS_H_

#include <string>

namespace ditserve {

// How many threads of this process can run at a time: on the processors that it may use, and within the processor time
// that its control group and those above it have (cpu.max, or cpu.cfs_quota_us of version 1, read under `root`),
// rounded up. One at least. More threads than that would be stopped in the middle of what others wait for.
int HostProcessors(const std::string& root = "");

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_HOST_PROCESSORS_H_
