#ifndef DITSERVE_SERVER_ENGINE_DEVICE_WATCH_H_
#define DITSERVE_SERVER_ENGINE_DEVICE_WATCH_H_

#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "core/base/clock.h"
#include "core/base/doorbell.h"
#include "server/engine/engine_device.h"
#include "server/engine/watchdog.h"

namespace ditserve {

// Asks devices a few times a second whether they are lost, and whether they get on, until one is lost. A thread asks,
// and may never come back from a device that hangs; so another, which calls none, looks whether it does. (Neither gives
// memory back, for which a device is waited for.)
//
// Thread safety: made and destroyed by one thread. Ownership: `devices`, each with a watchdog, and `clock` must outlive
// it; destroying it waits for the answer to what is asked.
class DeviceWatch {
 public:
  // `lost` is called once, on a thread of the watch's, with why: Unavailable.
  DeviceWatch(const std::vector<EngineDevice>& devices, const Clock& clock,
              std::function<void(const absl::Status&)> lost);
  ~DeviceWatch();

  // The devices have begun: from here on they are to answer soon.
  void Begun() { answer_.Begun(); }

 private:
  void Ask();
  void LookForAnswers();
  absl::Status AskDevices();
  void Lose(const absl::Status& why) ABSL_LOCKS_EXCLUDED(mutex_);
  bool Ending() ABSL_LOCKS_EXCLUDED(mutex_);

  const std::vector<EngineDevice>& devices_;
  const Clock& clock_;
  const std::function<void(const absl::Status&)> lost_;
  AnswerDeadline answer_;

  absl::Mutex mutex_;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  bool told_ ABSL_GUARDED_BY(mutex_) = false;
  Doorbell asking_ends_, looking_ends_;
  std::thread asker_, looker_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_DEVICE_WATCH_H_
