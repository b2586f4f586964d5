#ifndef DITSERVE_SERVER_STOP_SIGNAL_H_
#define DITSERVE_SERVER_STOP_SIGNAL_H_

#include <atomic>
#include <deque>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace ditserve {

// SIGTERM and SIGINT as a request to stop, SIGHUP as one to read the configuration again. Every SIGHUP is for Wait, and
// so is the first of the others while the process serves; any other of them ends the process at once, with exit code
// 128 + signal.
//
// Thread safety: thread-safe. To be made once, before any other thread starts: the signals are blocked in its maker and
// every thread started later.
class StopSignal {
 public:
  StopSignal();

  // From here on the first signal to stop is for Wait.
  void BeginServing() { state_->serving = true; }

  // Blocks until a signal came; returns each once. 0: Interrupt was called.
  int Wait();
  void Interrupt() { Came(*state_, 0); }

 private:
  struct State {
    std::atomic<bool> serving = false;
    absl::Mutex mutex;
    std::deque<int> came ABSL_GUARDED_BY(mutex);
  };

  static void Came(State& state, int signal);

  const std::shared_ptr<State> state_;  // Shared with a thread that waits for signals until the process ends.
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_STOP_SIGNAL_H_
