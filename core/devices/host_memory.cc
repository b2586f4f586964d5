#include "core/devices/host_memory.h"

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "core/base/status_macros.h"
#include "core/devices/control_groups.h"

namespace ditserve {
namespace {

constexpr double kStandstillPercent = 10;

// The first number behind each line's first word: "MemTotal:  24 kB", "inactive_file 4096", "RssAnon:\t  24 kB".
std::map<std::string, int64_t> Fields(const std::string& text) {
  std::map<std::string, int64_t> fields;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<std::string> words = absl::StrSplit(line, absl::ByAnyChar(" \t:"), absl::SkipEmpty());
    int64_t value = 0;
    if (words.size() >= 2 && absl::SimpleAtoi(words[1], &value)) fields[words[0]] = value;
  }
  return fields;
}

absl::StatusOr<MemoryStatus> MachineMemory(const std::string& root) {
  constexpr int64_t kKiB = 1024;
  std::map<std::string, int64_t> fields = Fields(ReadText(root + "/proc/meminfo").value_or(""));
  if (fields["MemTotal"] <= 0) return absl::InternalError("/proc/meminfo tells no MemTotal");
  return MemoryStatus{fields["MemTotal"] * kKiB, fields["MemAvailable"] * kKiB};
}

std::optional<int64_t> ReadNumber(const std::string& path) {
  const std::optional<std::string> text = ReadText(path);
  int64_t value = 0;
  if (!text || !absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &value)) return std::nullopt;  // "max": no limit.
  return value;
}

// Where a version of control groups keeps what it says of memory.
struct GroupFiles {
  absl::string_view limit;
  absl::string_view used;
  absl::string_view fields;  // Before a field of memory.stat that counts the groups below too.
};
constexpr GroupFiles kVersion1 = {"/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_"};
constexpr GroupFiles kVersion2 = {"/memory.max", "/memory.current", ""};

// Lowers `memory` to what one control group may have.
void ApplyGroup(const std::string& folder, const GroupFiles& files, MemoryStatus& memory) {
  const std::optional<int64_t> limit = ReadNumber(absl::StrCat(folder, files.limit));
  const std::optional<int64_t> used = ReadNumber(absl::StrCat(folder, files.used));
  if (!limit || !used) return;
  std::map<std::string, int64_t> fields = Fields(ReadText(folder + "/memory.stat").value_or(""));
  const int64_t droppable =
      fields[absl::StrCat(files.fields, "inactive_file")] + fields[absl::StrCat(files.fields, "active_file")];
  memory.total_bytes = std::min(memory.total_bytes, *limit);
  memory.available_bytes = std::clamp<int64_t>(*limit - *used + droppable, 0, memory.available_bytes);
}

// "full avg10=12.34 avg60=... total=..."
bool StandsStill(const std::string& root) {
  for (const absl::string_view line : absl::StrSplit(ReadText(root + "/proc/pressure/memory").value_or(""), '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    double percent = 0;
    if (words.size() < 2 || words[0] != "full") continue;
    return absl::SimpleAtod(absl::StripPrefix(words[1], "avg10="), &percent) && percent >= kStandstillPercent;
  }
  return false;
}

}  // namespace

absl::StatusOr<MemoryStatus> ReadHostMemory(const std::string& root) {
  DITSERVE_ASSIGN_OR_RETURN(MemoryStatus memory, MachineMemory(root));
  ForEachControlGroup(root, "memory", [&memory](const std::string& folder, bool version1) {
    ApplyGroup(folder, version1 ? kVersion1 : kVersion2, memory);
  });
  if (StandsStill(root)) memory.available_bytes = 0;
  if (const int64_t own = OwnHostMemoryBytes(root); own > 0) memory.own_bytes = own;
  return memory;
}

int64_t OwnHostMemoryBytes(const std::string& root) {
  constexpr int64_t kKiB = 1024;
  return Fields(ReadText(root + "/proc/self/status").value_or(""))["RssAnon"] * kKiB;
}

}  // namespace ditserve
