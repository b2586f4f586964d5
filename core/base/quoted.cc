#include "core/base/quoted.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace ditserve {

std::string Shortened(absl::string_view text, size_t most) {
  constexpr absl::string_view kCut = "...";
  if (text.size() <= most) return std::string(text);
  size_t length = most - kCut.size();
  while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xC0) == 0x80) --length;
  return absl::StrCat(text.substr(0, length), kCut);
}

std::string Quoted(absl::string_view text) {
  constexpr size_t kMost = 80;
  return absl::StrCat("\"", absl::Utf8SafeCEscape(Shortened(text, kMost)), "\"");
}

}  // namespace ditserve
