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
  sigaddset(&signals, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([state = state_, signals] {
    for (bool stopping = false;;) {
      int signal = 0;
      sigwait(&signals, &signal);
      if (signal != SIGHUP && (stopping || !state->serving)) _exit(128 + signal);
      stopping |= signal != SIGHUP;
      Came(*state, signal);
    }
  }).detach();
}

void StopSignal::Came(State& state, int signal) {
  const absl::MutexLock lock(&state.mutex);
  state.came.push_back(signal);
}

int StopSignal::Wait() {
  const absl::MutexLock lock(&state_->mutex);
  state_->mutex.Await(absl::Condition(
      +[](std::deque<int>* came) { return !came->empty(); }, &state_->came));
  const int signal = state_->came.front();
  state_->came.pop_front();
  return signal;
}

}  // namespace ditserve
