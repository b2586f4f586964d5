#ifndef DITSERVE_CORE_BASE_ERROR_DETAILS_H_
#define DITSERVE_CORE_BASE_ERROR_DETAILS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "core/base/memory.h"

// What an error is about, for programs; its message says the same to people. Details ride on the status as payloads,
// and so are lost where a new status is made of its message alone: see WithMessage.
namespace ditserve {

// A field of a request that is wrong, by its path: "vram_config.onload_device". The message is "field: what".
absl::Status FieldError(absl::string_view field, absl::string_view what,
                        absl::StatusCode code = absl::StatusCode::kInvalidArgument);
// Empty where the error is about no field.
std::string FieldOf(const absl::Status& status);

// More was needed of a memory than its budget holds.
struct MemoryShortage {
  Memory memory = Memory::kDevice;
  int64_t needed_bytes = 0;
  int64_t budget_bytes = 0;
};
absl::Status WithShortage(absl::Status status, const MemoryShortage& shortage);
std::optional<MemoryShortage> ShortageOf(const absl::Status& status);

// The same request is worth trying again after this long; kept to the millisecond.
absl::Status WithRetryAfter(absl::Status status, absl::Duration delay);
std::optional<absl::Duration> RetryAfterOf(const absl::Status& status);

// The error with its code and details, and another message.
absl::Status WithMessage(const absl::Status& status, absl::string_view message);

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_ERROR_DETAILS_H_
