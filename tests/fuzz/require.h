#ifndef DITSERVE_TESTS_FUZZ_REQUIRE_H_
#define DITSERVE_TESTS_FUZZ_REQUIRE_H_

#include <cstdlib>

namespace ditserve {

// What a fuzzer takes for a finding, whatever the build checks.
inline void Require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace ditserve

#endif  // DITSERVE_TESTS_FUZZ_REQUIRE_H_
