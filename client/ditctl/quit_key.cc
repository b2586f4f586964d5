#include "client/ditctl/quit_key.h"

#include <poll.h>
#include <unistd.h>

#include "absl/time/time.h"

namespace ditserve::ditctl {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(50);

// Whether a key that is q is there now.
bool QuitPressed(int descriptor) {
  pollfd ready = {descriptor, POLLIN, 0};
  char key = 0;
  while (poll(&ready, 1, 0) == 1 && (ready.revents & POLLIN) != 0 && read(descriptor, &key, 1) == 1) {
    if (key == 'q') return true;
  }
  return false;
}

}  // namespace

QuitKey::QuitKey(grpc::ClientContext& context, int descriptor) : descriptor_(descriptor) {
  if (descriptor < 0) return;
  termios settings;
  if (tcgetattr(descriptor, &settings) == 0) {
    if (tcgetpgrp(descriptor) != getpgrp()) return;  // In the background the keys are another's.
    before_ = settings;
    settings.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    tcsetattr(descriptor, TCSANOW, &settings);
  }
  thread_ = std::thread([this, &context] {
    do {
      if (QuitPressed(descriptor_)) return context.TryCancel();
    } while (!ended_.WaitForNotificationWithTimeout(kPoll));
  });
}

QuitKey::~QuitKey() {
  ended_.Notify();
  if (thread_.joinable()) thread_.join();
  if (before_) tcsetattr(descriptor_, TCSANOW, &*before_);
}

}  // namespace ditserve::ditctl
