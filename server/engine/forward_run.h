#ifndef DITSERVE_SERVER_ENGINE_FORWARD_RUN_H_
#define DITSERVE_SERVER_ENGINE_FORWARD_RUN_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/base/clock.h"
#include "core/base/profiler_range.h"
#include "core/base/task.h"
#include "core/devices/device.h"
#include "core/memory/tensor_region.h"
#include "core/residency/rider.h"
#include "models/activation_memory.h"
#include "models/tensor_mover.h"
#include "server/engine/engine.h"
#include "server/engine/operation_queue.h"
#include "server/engine/pass_meter.h"
#include "server/engine/pass_modulation.h"
#include "server/engine/served_model.h"
#include "server/engine/tensor_link.h"

namespace ditserve {

// One call from Submit to its end. Owns everything the pass needs; lives until `done` was called.
//
// Thread safety: what is not said to be on the executor is thread-safe.
class ForwardRun final : public ForwardHandle,
                         public LeaseSource,
                         public TensorMover,
                         public Laps,
                         public std::enable_shared_from_this<ForwardRun> {
 public:
  ForwardRun(ForwardCall call, ServedModel& model, const Clock& clock, Engine::ProgressCallback progress,
             Engine::DoneCallback done);

  ServedModel& model() { return model_; }
  const ForwardCall& call() const { return call_; }
  const ForwardShape& shape() const { return shape_; }
  // On the clock's scale, which no step of the wall clock moves.
  absl::Duration deadline() const { return deadline_; }

  // On which device, in what arithmetic, and with how many bytes of host memory at most. `link`: to and from the
  // device; null where it computes in host memory. `operations`: of the device. Called once, before Ride.
  void SetDevice(Device& device, TensorLink* link, OperationQueue* operations, at::ScalarType arithmetic,
                 int64_t host_bytes, PassModulation modulation);

  // Called once, by Submit. A cancellation that came earlier takes effect now.
  void Ride(std::unique_ptr<Rider> rider) ABSL_LOCKS_EXCLUDED(mutex_);

  void Cancel(absl::Status why) override ABSL_LOCKS_EXCLUDED(mutex_);
  bool cancelled() const ABSL_LOCKS_EXCLUDED(mutex_);

  // The number of the device that computes it. From Ride until Finish.
  int device() const { return rider_->device(); }

  // Blocks until Ride was called. An admission can overtake the thread that submits, by microseconds.
  void AwaitRider() ABSL_LOCKS_EXCLUDED(mutex_);

  // On the executor: whether the last pass that ended was of a step that a step cache skipped.
  bool skipped() const { return skipped_; }

  // On the executor: computes until the pass waits or ends; calls `ended` at its end, and `lapped` between two of a
  // loop's passes.
  void Begin(absl::AnyInvocable<void(absl::Status) &&> ended, absl::AnyInvocable<void()> lapped);

  // What the model acquires its weights from: the rider, with progress and time taken on the way.
  void Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) override;

  // What the model moves its inputs and its output by.
  void ToDevice(const at::Tensor& from, const at::Tensor& to, Done done) override;
  void ToHost(const at::Tensor& from, const at::Tensor& to, Done done) override;

  // What a denoising loop makes its passes by: each in the memory of the one before, which rides as long as the next is
  // not under way.
  Task<at::Tensor> MakeLap(const ForwardInputs& inputs, int64_t lap) override;
  void Stepped(int64_t step, const at::Tensor& latents) override;

  // Hands over what became of the call, if nobody has: once, whatever the pass waits for, but not while it reads the
  // call's inputs; from then on it does not read them.
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
  // The pass reads the call's inputs. Errors: the call was told what became of it, so that they may be gone.
  absl::Status BeginReading() ABSL_LOCKS_EXCLUDED(mutex_);
  void EndReading() ABSL_LOCKS_EXCLUDED(mutex_);
  void FindWhatLapsKeep();
  int ModulesOf(size_t lap) const;
  // What step caches left out of the lap that was made.
  void NoteReused();
  // The lap that is to come rides, from now on behind this one.
  void JoinNextLap(int64_t lap);
  // On the executor: that one may begin. `done` is called when the one before it has ended, which it then has.
  void NextLapMayBegin(absl::Status status);
  void GoOnToNextLap(Done done) ABSL_LOCKS_EXCLUDED(mutex_);
  class NextLap;
  // Of the riders that have left, and of the one that rides.
  RiderAccount Account() const;
  int modules_total() const;

  // What was booked for the pass. Throws StatusError.
  void TakeDeviceMemory();
  // The callback owns this call; it is the last to let go of it.
  void End(absl::Status status);
  ForwardResult Result();
  void Report();
  ForwardProgress Progress() const;

  const ForwardCall call_;
  const ForwardShape shape_;
  ServedModel& model_;
  Device* device_ = nullptr;
  TensorLink* link_ = nullptr;
  at::ScalarType arithmetic_ = at::kFloat;
  const Clock& clock_;
  const absl::Duration begun_;
  const absl::Duration deadline_;
  Engine::ProgressCallback progress_;
  absl::AnyInvocable<void(absl::Status) &&> ended_;
  absl::AnyInvocable<void()> lapped_;
  std::shared_ptr<ActivationMemory> activations_;  // Host memory.
  std::shared_ptr<TensorRegion> on_device_;        // Of a device that has memory of its own.
  std::optional<PassModulation> modulation_;
  Modulation given_;  // To the pass that is under way.
  // --- of a denoising loop
  std::vector<float> lap_timesteps_;  // Of each, as the model sees it.
  std::vector<bool> lap_keeps_;       // Whether its modulation is kept.
  int64_t lap_ = 0;
  StepCaches step_caches_;  // Of each item; empty: there are none.
  std::vector<ReusedStep> reused_steps_;
  int64_t steps_skipped_ = 0;
  bool skipped_ = false;
  int modules_left_out_ = 0;  // Of those that laps were to take.
  std::unique_ptr<Rider> next_rider_;
  std::optional<absl::Status> next_may_begin_;
  Done awaits_next_;
  RiderAccount past_;  // Of the laps before this one.
  std::optional<Task<at::Tensor>> pass_;
  bool computing_ = false;
  std::optional<PassMeter> meter_;

  mutable absl::Mutex mutex_;
  std::unique_ptr<Rider> rider_;  // Set before the pass begins, taken after it: only Cancel needs the mutex.
  absl::Status cancelled_ ABSL_GUARDED_BY(mutex_);
  Engine::DoneCallback done_ ABSL_GUARDED_BY(mutex_);  // Null once it was called.
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::StatusOr<ForwardResult>> told_ ABSL_GUARDED_BY(mutex_);  // While it was reading.
  int telling_ ABSL_GUARDED_BY(mutex_) = 0;  // Threads that tell the rider: it stays meanwhile.

  ProfilerRange queued_;  // Until it begins.
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_FORWARD_RUN_H_
