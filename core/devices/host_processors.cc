#include "core/devices/host_processors.h"

#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/devices/control_groups.h"

namespace ditserve {
namespace {

// "200000 100000": microseconds of processor time in each so many; nullopt where that says no limit ("max", -1).
std::optional<int64_t> LimitOf(const std::string& text) {
  const std::vector<absl::string_view> words = absl::StrSplit(text, absl::ByAnyChar(" \n"), absl::SkipEmpty());
  int64_t quota = 0, period = 0;
  if (words.size() != 2 || !absl::SimpleAtoi(words[0], &quota) || !absl::SimpleAtoi(words[1], &period)) {
    return std::nullopt;
  }
  if (quota <= 0 || period <= 0) return std::nullopt;
  return quota / period + (quota % period != 0);
}

// That the process may run on: its affinity mask, of however many processors the machine has. Not
// std::thread::hardware_concurrency, which tells the machine's.
int64_t AllowedProcessors() {
  constexpr int kMost = 1 << 20;
  for (int most = CPU_SETSIZE; most <= kMost; most *= 2) {
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(most), [](cpu_set_t* s) { CPU_FREE(s); });
    const size_t size = CPU_ALLOC_SIZE(most);
    if (sched_getaffinity(0, size, set.get()) == 0) return CPU_COUNT_S(size, set.get());
  }
  return 1;
}

}  // namespace

int HostProcessors(const std::string& root) {
  int64_t processors = AllowedProcessors();
  ForEachControlGroup(root, "cpu", [&processors](const std::string& folder, bool version1) {
    const std::string text = version1 ? absl::StrCat(ReadText(folder + "/cpu.cfs_quota_us").value_or(""), " ",
                                                     ReadText(folder + "/cpu.cfs_period_us").value_or(""))
                                      : ReadText(folder + "/cpu.max").value_or("");
    processors = std::min(processors, LimitOf(text).value_or(std::numeric_limits<int64_t>::max()));
  });
  return static_cast<int>(processors);
}

}  // namespace ditserve
