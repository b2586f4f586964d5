#ifndef DITSERVE_TESTS_SIMULATION_OFFLINE_OPTIMUM_H_
#define DITSERVE_TESTS_SIMULATION_OFFLINE_OPTIMUM_H_

#include <cstdint>
#include <vector>

namespace ditserve::simulation {

// The least bytes that any policy moves, even one that knows all that comes, for so many laps over modules of these
// sizes. It begins with nothing there. A module is there while it is computed with, beside what stays; to load ahead
// saves no bytes. By dynamic programming over the sets of modules that are there: a few modules, not more.
//
// `room_bytes`: of all that is there at one time, at least the widest module. `kept_bytes`: of these, what may stay
// when no operation reads it.
int64_t LeastBytesMoved(const std::vector<int64_t>& modules, int laps, int64_t room_bytes, int64_t kept_bytes);

}  // namespace ditserve::simulation

#endif  // DITSERVE_TESTS_SIMULATION_OFFLINE_OPTIMUM_H_
