#include "core/base/budget_spec.h"

#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "core/base/size.h"

namespace ditserve {

std::optional<BudgetSpec> ParseBudget(absl::string_view text) {
  BudgetSpec spec;
  if (absl::ConsumeSuffix(&text, "%")) {
    double percent = 0;
    if (!absl::SimpleAtod(text, &percent) || !(percent > 0 && percent <= 100)) return std::nullopt;
    spec.share = percent / 100;
    return spec;
  }
  spec.bytes = ParseSize(text);
  if (!spec.bytes || *spec.bytes < 1) return std::nullopt;
  return spec;
}

std::optional<BudgetSpec> ParseDeviceBudget(absl::string_view text) {
  if (text == "auto") return BudgetSpec{.share = 0.6, .automatic = true};
  return ParseBudget(text);
}

int64_t ResolveBudget(const BudgetSpec& spec, int64_t total_bytes) {
  return spec.bytes.value_or(static_cast<int64_t>(std::floor(spec.share * static_cast<double>(total_bytes))));
}

}  // namespace ditserve
