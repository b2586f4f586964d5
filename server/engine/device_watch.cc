#include "server/engine/device_watch.h"

#include <utility>

#include "absl/time/time.h"

namespace ditserve {
namespace {

// How often devices are asked.
constexpr absl::Duration kInterval = absl::Milliseconds(250);
static_assert(kInterval <= absl::Seconds(1), "health tells of a lost device within a second");

}  // namespace

DeviceWatch::DeviceWatch(const std::vector<EngineDevice>& devices, const Clock& clock,
                         std::function<void(const absl::Status&)> lost)
    : devices_(devices), clock_(clock), lost_(std::move(lost)) {
  asker_ = std::thread([this] { Ask(); });
  looker_ = std::thread([this] { LookForAnswers(); });
}

DeviceWatch::~DeviceWatch() {
  {
    const absl::MutexLock lock(&mutex_);
    ending_ = true;
  }
  asking_ends_.Ring();
  looking_ends_.Ring();
  asker_.join();
  looker_.join();
}

void DeviceWatch::Ask() {
  for (absl::Duration next = clock_.Now(); !Ending();) {
    if (const absl::Duration now = clock_.Now(); now < next) {
      asking_ends_.WaitFor(next - now);
      continue;
    }
    const absl::Status loss = AskDevices();
    if (!loss.ok()) return Lose(loss);
    next += kInterval;
  }
}

// By the machine's time between two looks, however fast the clock goes: who asks has had it too.
void DeviceWatch::LookForAnswers() {
  while (!Ending()) {
    looking_ends_.WaitFor(kInterval);
    const absl::Status loss = answer_.Look(clock_.Now());
    if (!loss.ok()) return Lose(loss);
  }
}

absl::Status DeviceWatch::AskDevices() {
  absl::Status health;
  for (const EngineDevice& each : devices_) {
    answer_.Asked(*each.device);
    health = each.device->Health();
    if (health.ok()) health = each.watchdog->Check(clock_.Now());
    if (!health.ok()) break;
  }
  answer_.Answered();
  return health;
}

void DeviceWatch::Lose(const absl::Status& why) {
  {
    const absl::MutexLock lock(&mutex_);
    if (std::exchange(told_, true)) return;
  }
  lost_(why);
}

bool DeviceWatch::Ending() {
  const absl::MutexLock lock(&mutex_);
  return ending_;
}

}  // namespace ditserve
