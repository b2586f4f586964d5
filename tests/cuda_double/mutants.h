#ifndef DITSERVE_TESTS_CUDA_DOUBLE_MUTANTS_H_
#define DITSERVE_TESTS_CUDA_DOUBLE_MUTANTS_H_

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "tests/cuda_double/cuda_double.h"

namespace ditserve {

// What is run where the calls from a site are left out: begins the double anew, drops the site (null: none), and fails
// as tests do, with "a wrong value" or "memcmp" where that is what is wrong.
using MutantRun = absl::FunctionRef<void(uint32_t run, const void* site)>;

struct Found {
  int races = 0, values = 0, failures = 0;   // Runs with such, and with any.
  std::string first;                         // What was told first.
  std::map<const void*, std::string> sites;  // Our call sites that were come to.
};

inline Found Without(const void* site, uint32_t runs, MutantRun run) {
  Found found;
  for (uint32_t i = 0; i < runs; ++i) {
    ::testing::TestPartResultArray failures;
    {
      const ::testing::ScopedFakeTestPartResultReporter reporter(
          ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ALL_THREADS, &failures);
      run(i, site);
      cuda_double::DropSite(nullptr);
    }
    for (const cuda_double::Site& seen : cuda_double::Sites()) {
      if (absl::StrContains(seen.name, "ditserve::")) found.sites[seen.address] = seen.name;  // The others: LibTorch's.
    }
    bool raced = false, wrong = false;
    for (int j = 0; j < failures.size(); ++j) {
      const std::string message = failures.GetTestPartResult(j).message();
      raced |= absl::StrContains(message, "is not ordered after");
      wrong |= absl::StrContains(message, "memcmp") || absl::StrContains(message, "a wrong value");
      if (found.first.empty()) found.first = message.substr(0, message.find('\n', 1));
    }
    found.races += raced, found.values += wrong, found.failures += failures.size() > 0;
  }
  return found;
}

// Leaves out each site that runs come to, alone, and expects that it is missed, unless its name is among `in_vain`;
// prints a row of a table for each. Returns the names of those that were missed.
inline std::vector<std::string> LeaveOutEach(uint32_t runs, MutantRun run,
                                             std::initializer_list<absl::string_view> in_vain = {}) {
  const Found whole = Without(nullptr, runs, run);
  EXPECT_EQ(whole.first, "") << "with all of them";
  std::vector<std::string> missed;
  for (const auto& [address, name] : whole.sites) {
    const Found found = Without(address, runs, run);
    std::printf("| %s | %u | %d | %d | %d |\n", name.c_str(), runs, found.races, found.values, found.failures);
    const bool is_missed = found.failures > 0;
    const bool is_in_vain = std::find(in_vain.begin(), in_vain.end(), name) != in_vain.end();
    EXPECT_TRUE(is_missed || is_in_vain) << name << ", " << found.first;
    if (is_missed) missed.push_back(name);
  }
  return missed;
}

}  // namespace ditserve

#endif  // DITSERVE_TESTS_CUDA_DOUBLE_MUTANTS_H_
