#include "core/base/error_details.h"

#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ditserve {
namespace {

constexpr char kField[] = "ditserve/field";
constexpr char kShortage[] = "ditserve/memory-shortage";
constexpr char kRetryAfter[] = "ditserve/retry-after-ms";

}  // namespace

absl::Status FieldError(absl::string_view field, absl::string_view what, absl::StatusCode code) {
  absl::Status status(code, absl::StrCat(field, ": ", what));
  status.SetPayload(kField, absl::Cord(field));
  return status;
}

std::string FieldOf(const absl::Status& status) {
  return std::string(status.GetPayload(kField).value_or(absl::Cord()));
}

absl::Status WithShortage(absl::Status status, const MemoryShortage& shortage) {
  status.SetPayload(kShortage, absl::Cord(absl::StrCat(static_cast<int>(shortage.memory), " ", shortage.needed_bytes,
                                                       " ", shortage.budget_bytes)));
  return status;
}

std::optional<MemoryShortage> ShortageOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kShortage);
  if (!payload) return std::nullopt;
  const std::vector<std::string> parts = absl::StrSplit(std::string(*payload), ' ');
  int memory = 0;
  MemoryShortage shortage;
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[0], &memory) ||
      !absl::SimpleAtoi(parts[1], &shortage.needed_bytes) || !absl::SimpleAtoi(parts[2], &shortage.budget_bytes)) {
    return std::nullopt;
  }
  shortage.memory = static_cast<Memory>(memory);
  return shortage;
}

absl::Status WithRetryAfter(absl::Status status, absl::Duration delay) {
  status.SetPayload(kRetryAfter, absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(delay))));
  return status;
}

std::optional<absl::Duration> RetryAfterOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryAfter);
  int64_t milliseconds = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &milliseconds)) return std::nullopt;
  return absl::Milliseconds(milliseconds);
}

absl::Status WithMessage(const absl::Status& status, absl::string_view message) {
  absl::Status changed(status.code(), message);
  status.ForEachPayload([&](absl::string_view type, const absl::Cord& payload) { changed.SetPayload(type, payload); });
  return changed;
}

}  // namespace ditserve
