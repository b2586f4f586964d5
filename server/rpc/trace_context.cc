#include "server/rpc/trace_context.h"

#include <algorithm>

#include "absl/strings/ascii.h"

namespace ditserve {
namespace {

// Lower case hexadecimal digits, not all of them 0.
bool IsId(absl::string_view id) {
  return std::all_of(id.begin(), id.end(), [](char c) { return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f'); }) &&
         std::any_of(id.begin(), id.end(), [](char c) { return c != '0'; });
}

}  // namespace

// "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01": version, trace, parent, flags. Later versions may append.
std::optional<TraceContext> ParseTraceparent(absl::string_view traceparent) {
  constexpr size_t kSize = 55;
  if (traceparent.size() < kSize || (traceparent.size() > kSize && traceparent[kSize] != '-')) return std::nullopt;
  const absl::string_view version = traceparent.substr(0, 2);
  const absl::string_view trace = traceparent.substr(3, 32);
  const absl::string_view parent = traceparent.substr(36, 16);
  const bool dashes = traceparent[2] == '-' && traceparent[35] == '-' && traceparent[52] == '-';
  const bool known = version == "00" ? traceparent.size() == kSize : IsId(version) && version != "ff";
  if (!dashes || !known || !IsId(trace) || !IsId(parent)) return std::nullopt;
  return TraceContext{std::string(trace), std::string(parent)};
}

}  // namespace ditserve
