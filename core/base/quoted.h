#ifndef DITSERVE_CORE_BASE_QUOTED_H_
#define DITSERVE_CORE_BASE_QUOTED_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace ditserve {

// `text`, cut between two UTF-8 characters and ended by "..." where it has more than `most` bytes.
std::string Shortened(absl::string_view text, size_t most);

// What a client wrote, as it may be repeated to it: in double quotes, short, control characters escaped.
std::string Quoted(absl::string_view text);

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_QUOTED_H_
