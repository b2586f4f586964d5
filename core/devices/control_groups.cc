#include "core/devices/control_groups.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ditserve {

std::optional<std::string> ReadText(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

void ForEachControlGroup(const std::string& root, absl::string_view controller,
                         absl::FunctionRef<void(const std::string& folder, bool version1)> visit) {
  // "4:cpu,cpuacct:/pod/container" of version 1, "0::/pod/container" of version 2.
  for (const absl::string_view line : absl::StrSplit(ReadText(root + "/proc/self/cgroup").value_or(""), '\n')) {
    const std::vector<absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() < 3 || parts[2].empty()) continue;
    const std::vector<absl::string_view> controllers = absl::StrSplit(parts[1], ',', absl::SkipEmpty());
    const bool version1 = !controllers.empty();
    if (version1 && std::find(controllers.begin(), controllers.end(), controller) == controllers.end()) continue;
    const std::string top = absl::StrCat(root, "/sys/fs/cgroup", version1 ? "/" : "", version1 ? controller : "");
    for (std::string group(parts[2] == "/" ? "" : parts[2]);; group.resize(group.rfind('/'))) {
      visit(top + group, version1);
      if (group.find('/') == std::string::npos) break;
    }
  }
}

}  // namespace ditserve
