#include "server/rpc/patience.h"

namespace ditserve {
namespace {

// A client gives up by its own clock: by a network's whims before ours, and gRPC rounds what it tells of its deadline
// up by as much as a hundredth.
constexpr absl::Duration kJitter = absl::Milliseconds(20);

}  // namespace

absl::Status WhyCancelled(absl::Duration given, absl::Duration left) {
  if (given == absl::InfiniteDuration() || left > kJitter + given / 100) {
    return absl::CancelledError("the call was cancelled");
  }
  return absl::DeadlineExceededError("the request's deadline has passed");
}

}  // namespace ditserve
