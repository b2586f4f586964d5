#ifndef DITSERVE_SERVER_GATE_DOORMAN_H_
#define DITSERVE_SERVER_GATE_DOORMAN_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/base/quota.h"
#include "server/gate/access.h"

namespace google::protobuf {
class Descriptor;
}

namespace ditserve {

// A method that is served.
struct Method {
  std::optional<Scope> scope;     // That a token must have; none: nobody is asked for a token.
  int64_t max_message_bytes = 0;  // Of what the client sends.
  bool is_probe = false;          // Takes no call's place but a probe's.
  bool is_watch = false;          // A probe that is held as long as its client likes.
  bool is_stream = false;         // The client may send several messages.
  // What the client sends; null: its bytes are not looked at. Must outlive the gate.
  const google::protobuf::Descriptor* message = nullptr;
};
using Methods = std::map<std::string, Method, std::less<>>;  // By path: "/package.Service/Method".

struct DoorLimits {
  int max_connections = 1024;
  int max_calls = 256;
  int64_t message_bytes = 1 << 30;  // Of the messages of all calls together, but for those that are small.
};

// Who may come in at one address: asks for the token, counts calls and the bytes of their messages.
//
// Thread safety: thread-compatible; a gate's thread asks. Ownership: must outlive the calls that it let in.
class Doorman {
 public:
  // Messages of up to this many bytes are not counted: there are no more of them than calls, and probes' are shorter.
  static constexpr int64_t kSmallMessageBytes = 64 << 10;
  // Places that a connection has for probes of its own. A check is answered at once; a watch lasts, and takes 20 KiB,
  // as long as its client likes.
  struct Probes {
    Quota checks{8}, watches{1};
  };
  // Those that all share beyond: a proxy's connection carries the probes of many clients.
  static constexpr int kSharedChecks = 1024, kSharedWatches = 256;

  // A call that was let in.
  struct Call {
    const Method* method = nullptr;
    std::string caller;  // The token's name; empty where nobody was asked.
    Quota::Hold slot, own_slot;
    Quota::Hold bytes, own_bytes;  // Of the message that is under way, or was last.
    Quota* own_message_bytes = nullptr;
  };

  // `access`: null where nobody is asked for a token; must outlive it.
  Doorman(Methods methods, const DoorLimits& limits, const AccessControl* access)
      : methods_(std::move(methods)), access_(access), calls_(limits.max_calls), message_bytes_(limits.message_bytes) {}

  // `authorization`: the metadata of that name. `probes`: the connection's. Errors: Unimplemented; those of
  // AccessControl; ResourceExhausted.
  absl::StatusOr<Call> LetIn(absl::string_view path, absl::string_view authorization, Probes& probes);

  // Counts a message in place of the call's last. False where there is no room now. Errors: ResourceExhausted where
  // there never is.
  absl::StatusOr<bool> CountMessage(Call& call, int64_t message_bytes);

  // Whether a message has found no room since this was asked last.
  bool TurnedMessagesAway() { return std::exchange(turned_away_, false); }

  int64_t calls() const { return calls_.held(); }
  int64_t message_bytes() const { return message_bytes_.held(); }

 private:
  struct OwnQuotas {
    Quota calls{0}, message_bytes{0};
  };

  const Methods methods_;
  const AccessControl* const access_;
  Quota calls_, message_bytes_, shared_checks_{kSharedChecks}, shared_watches_{kSharedWatches};
  bool turned_away_ = false;
  std::map<std::string, OwnQuotas> callers_;  // Of as many as there are tokens.
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_DOORMAN_H_
