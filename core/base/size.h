#ifndef DITSERVE_CORE_BASE_SIZE_H_
#define DITSERVE_CORE_BASE_SIZE_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace ditserve {

// The most bytes that a size may be.
inline constexpr int64_t kMaxSizeBytes = int64_t{1} << 50;

// "1073741824", "512MiB", "1.5 GiB": 0 to kMaxSizeBytes bytes, with at most one unit; nullopt for anything else.
// Flags and the configuration's YAML are read alike, which is why this is not left to the flags' library.
std::optional<int64_t> ParseSize(absl::string_view text);

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_SIZE_H_
