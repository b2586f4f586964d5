#include "core/base/size.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"

namespace ditserve {

std::optional<int64_t> ParseSize(absl::string_view text) {
  double unit = 1;
  for (const auto& [suffix, bytes] : {std::pair("KiB", 0x1p10), std::pair("MiB", 0x1p20), std::pair("GiB", 0x1p30)}) {
    if (!absl::ConsumeSuffix(&text, suffix)) continue;
    unit = bytes;
    break;
  }
  double number = 0;
  if (!absl::SimpleAtod(absl::StripAsciiWhitespace(text), &number)) return std::nullopt;
  const double bytes = number * unit;
  if (!(bytes >= 0 && bytes <= static_cast<double>(kMaxSizeBytes))) return std::nullopt;
  return static_cast<int64_t>(bytes);
}

}  // namespace ditserve
