#ifndef DITSERVE_SERVER_STOP_SIGNAL_H_
#define DITSERVE_SERVER_STOP_SIGNAL_H_

#include <atomic>
#include <memory>

#include "absl/synchronization/notification.h"

namespace ditserve {

// SIGTERM and SIGINT as a request to stop. The first one while the process serves is for Wait; any other ends the
// process at once, with exit code 128 + signal.
//
// Thread safety: thread-safe. To be made once, before any other thread starts: the signals are blocked in its maker and
// every thread started later.
class StopSignal {
 public:
  StopSignal();

  // From here on the first signal is for Wait.
  void BeginServing() { state_->serving = true; }

  // Blocks until a signal came; returns it.
  int Wait();

 private:
  struct State {
    std::atomic<bool> serving = false;
    int signal = 0;
    absl::Notification came;
  };

  const std::shared_ptr<State> state_;  // Shared with a thread that waits for signals until the process ends.
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_STOP_SIGNAL_H_
