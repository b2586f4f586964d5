#ifndef DITSERVE_CORE_DEVICES_CONTROL_GROUPS_H_
#define DITSERVE_CORE_DEVICES_CONTROL_GROUPS_H_

#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

namespace ditserve {

// A file's text; nullopt where there is no such file.
std::optional<std::string> ReadText(const std::string& path);

// Calls `visit` with the folder of the process's control group and of each above it, and whether it is of version 1 of
// control groups, of the hierarchy that has the controller; of both versions where the system mixes them. A container
// of version 1 names its group as the machine does and sees it as the topmost: so some folders are not there, and say
// nothing. `root` is put before /proc and /sys/fs/cgroup.
void ForEachControlGroup(const std::string& root, absl::string_view controller,
                         absl::FunctionRef<void(const std::string& folder, bool version1)> visit);

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_CONTROL_GROUPS_H_
