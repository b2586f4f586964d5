#include "server/stop_signal.h"

#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <thread>

namespace ditserve {

StopSignal::StopSignal() : state_(std::make_shared<State>()) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([state = state_, signals] {
    for (;;) {
      int signal = 0;
      sigwait(&signals, &signal);
      if (!state->serving || state->came.HasBeenNotified()) _exit(128 + signal);
      state->signal = signal;
      state->came.Notify();
    }
  }).detach();
}

int StopSignal::Wait() {
  state_->came.WaitForNotification();
  return state_->signal;
}

}  // namespace ditserve
