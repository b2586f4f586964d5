#ifndef DITSERVE_SERVER_RPC_TRACE_CONTEXT_H_
#define DITSERVE_SERVER_RPC_TRACE_CONTEXT_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace ditserve {

// Which trace a call is a part of, as its client told.
struct TraceContext {
  std::string trace_id;   // 32 hexadecimal digits.
  std::string parent_id;  // 16 of them: the client's span.
};

// Reads the metadata `traceparent` (W3C Trace Context, level 1); nullopt for what is none.
std::optional<TraceContext> ParseTraceparent(absl::string_view traceparent);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_TRACE_CONTEXT_H_
