#ifndef DITSERVE_SERVER_ENGINE_FORWARD_RUN_H_
#define DITSERVE_SERVER_ENGINE_FORWARD_RUN_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/base/clock.h"
#include "core/base/task.h"
#include "core/devices/device.h"
#include "core/memory/tensor_region.h"
#include "core/residency/rider.h"
#include "models/activation_memory.h"
#include "models/tensor_mover.h"
#include "server/engine/engine.h"
#include "server/engine/operation_queue.h"
#include "server/engine/pass_meter.h"
#include "server/engine/served_model.h"
#include "server/engine/tensor_link.h"

namespace ditserve {

// One call from Submit to its end. Owns everything the pass needs; lives until `done` was called.
//
// Thread safety: what is not said to be on the executor is thread-safe.
class ForwardRun final : public ForwardHandle, public LeaseSource, public TensorMover {
 public:
  ForwardRun(ForwardCall call, ServedModel& model, const Clock& clock, Engine::ProgressCallback progress,
             Engine::DoneCallback done);

  ServedModel& model() { return model_; }
  const ForwardCall& call() const { return call_; }
  // On the clock's scale, which no step of the wall clock moves.
  absl::Duration deadline() const { return deadline_; }

  // On which device, in what arithmetic, and with how many bytes of activations at most. `link`: to and from the
  // device; null where it computes in host memory. `operations`: of the device. Called once, before Ride.
  void SetDevice(Device& device, TensorLink* link, OperationQueue* operations, at::ScalarType arithmetic,
                 int64_t activation_bytes);

  // Called once, by Submit. A cancellation that came earlier takes effect now.
  void Ride(std::unique_ptr<Rider> rider) ABSL_LOCKS_EXCLUDED(mutex_);

  void Cancel(absl::Status why) override ABSL_LOCKS_EXCLUDED(mutex_);
  bool cancelled() const ABSL_LOCKS_EXCLUDED(mutex_);

  // The number of the device that computes it. From Ride until Finish.
  int device() const { return rider_->device(); }

  // Blocks until Ride was called. An admission can overtake the thread that submits, by microseconds.
  void AwaitRider() ABSL_LOCKS_EXCLUDED(mutex_);

  // On the executor: computes until the pass waits or ends; calls `ended` at its end.
  void Begin(absl::AnyInvocable<void(absl::Status) &&> ended);

  // What the model acquires its weights from: the rider, with progress and time taken on the way.
  void Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) override;

  // What the model moves its inputs and its output by.
  void ToDevice(const at::Tensor& from, const at::Tensor& to, Done done) override;
  void ToHost(const at::Tensor& from, const at::Tensor& to, Done done) override;

  // Hands over what became of the call, if nobody has: once, whatever the pass waits for.
  void Tell(absl::StatusOr<ForwardResult> result) ABSL_LOCKS_EXCLUDED(mutex_);

  // Once: hands the result over and lets go of everything. On the executor where the pass has begun.
  void Finish(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Of what the pass awaits: `done`, which goes on with the pass, at once or later.
  template <typename T>
  absl::AnyInvocable<void(T) &&> Resuming(absl::AnyInvocable<void(T) &&> done);
  // Runs a piece of the pass. Ends the call if the pass is done.
  template <typename Piece>
  void Resume(Piece piece);
  // Of a cancellation; under no lock, for the rider may give memory back.
  void TellRider() ABSL_LOCKS_EXCLUDED(mutex_);
  // What was booked for the pass. Throws StatusError.
  void TakeDeviceMemory();
  // The callback owns this call; it is the last to let go of it.
  void End(absl::Status status);
  ForwardResult Result();
  void Report();

  const ForwardCall call_;
  ServedModel& model_;
  Device* device_ = nullptr;
  TensorLink* link_ = nullptr;
  at::ScalarType arithmetic_ = at::kFloat;
  const Clock& clock_;
  const absl::Duration begun_;
  const absl::Duration deadline_;
  Engine::ProgressCallback progress_;
  absl::AnyInvocable<void(absl::Status) &&> ended_;
  std::shared_ptr<ActivationMemory> activations_;  // Host memory.
  std::shared_ptr<TensorRegion> on_device_;        // Of a device that has memory of its own.
  std::optional<Task<at::Tensor>> pass_;
  bool computing_ = false;
  std::optional<PassMeter> meter_;

  mutable absl::Mutex mutex_;
  std::unique_ptr<Rider> rider_;  // Set before the pass begins, taken after it: only Cancel needs the mutex.
  absl::Status cancelled_ ABSL_GUARDED_BY(mutex_);
  Engine::DoneCallback done_ ABSL_GUARDED_BY(mutex_);  // Null once it was called.
  int telling_ ABSL_GUARDED_BY(mutex_) = 0;            // Threads that tell the rider: it stays meanwhile.
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_FORWARD_RUN_H_
