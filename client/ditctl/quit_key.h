#ifndef DITSERVE_CLIENT_DITCTL_QUIT_KEY_H_
#define DITSERVE_CLIENT_DITCTL_QUIT_KEY_H_

#include <grpcpp/client_context.h>
#include <termios.h>

#include <optional>
#include <thread>

#include "absl/synchronization/notification.h"

namespace ditserve::ditctl {

// Cancels `context` when q is pressed, as long as it lives. `descriptor` is where keys come from, -1 for nowhere; a
// terminal gives them without Enter meanwhile, and shows none.
class QuitKey {
 public:
  QuitKey(grpc::ClientContext& context, int descriptor);
  ~QuitKey();

 private:
  const int descriptor_;
  std::optional<termios> before_;  // What the terminal is put back to.
  absl::Notification ended_;
  std::thread thread_;
};

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_QUIT_KEY_H_
