#ifndef DITSERVE_CORE_BASE_BUDGET_SPEC_H_
#define DITSERVE_CORE_BASE_BUDGET_SPEC_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace ditserve {

// A memory budget as written: bytes, or a share of the memory that is there.
struct BudgetSpec {
  std::optional<int64_t> bytes;
  double share = 0;        // 0 to 1, if there are no bytes.
  bool automatic = false;  // Where something better is known than this share, that.
};

// "8 GiB", "12.5%": 1 to kMaxSizeBytes bytes, or a share above 0 % and up to 100 %; nullopt for anything else.
std::optional<BudgetSpec> ParseBudget(absl::string_view text);

// The same, and "auto".
std::optional<BudgetSpec> ParseDeviceBudget(absl::string_view text);

// What ParseBudget takes, for messages.
inline constexpr absl::string_view kBudgetForm =
    "expected 1 to 2^50 bytes, with KiB, MiB or GiB, or a share above 0% and up to 100%";
inline constexpr absl::string_view kDeviceBudgetForm =
    "expected auto, 1 to 2^50 bytes, with KiB, MiB or GiB, or a share above 0% and up to 100%";

// The budget in bytes on a machine with `total_bytes`.
int64_t ResolveBudget(const BudgetSpec& spec, int64_t total_bytes);

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_BUDGET_SPEC_H_
