#ifndef DITSERVE_SERVER_GATE_ACCESS_H_
#define DITSERVE_SERVER_GATE_ACCESS_H_

#include <cstdint>
#include <limits>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ditserve {

// What a call needs to be allowed.
enum class Scope {
  kInfer,  // To compute.
  kRead,   // To ask what there is and where every byte is.
  kAdmin,  // To change the server.
};

// Who calls, and how much of the server they may take at one time.
struct Caller {
  std::string name;
  int max_calls = std::numeric_limits<int>::max();
  int64_t max_message_bytes = std::numeric_limits<int64_t>::max();
};

// The metadata that tells gRPC the caller's name. It is the gate's alone: what a client sends by that name goes no
// further.
inline constexpr char kCallerHeader[] = "ditserve-caller";

// Who may do what, told by bearer tokens.
class AccessControl {
 public:
  virtual ~AccessControl() = default;
  // `token`: what the client sent, empty for none. Errors: Unauthenticated where it is none of ours; PermissionDenied
  // where it does not have the scope. Thread-safe.
  virtual absl::StatusOr<Caller> Check(absl::string_view token, Scope scope) const = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_ACCESS_H_
