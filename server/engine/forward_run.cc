#include "server/engine/forward_run.h"

#include <c10/core/InferenceMode.h>

#include <utility>

#include "absl/time/clock.h"
#include "models/errors.h"
#include "models/ops.h"
#include "models/weights.h"
#include "server/engine/compute_pace.h"
#include "server/engine/torch_device.h"

namespace ditserve {

ForwardRun::ForwardRun(ForwardCall call, ServedModel& model, const Clock& clock, Engine::ProgressCallback progress,
                       Engine::DoneCallback done)
    : call_(std::move(call)),
      model_(model),
      clock_(clock),
      begun_(clock.Now()),
      deadline_(begun_ + (call_.deadline - absl::Now())),
      progress_(std::move(progress)),
      done_(std::move(done)) {}

void ForwardRun::SetDevice(Device& device, TensorLink* link, OperationQueue* operations, at::ScalarType arithmetic,
                           int64_t activation_bytes) {
  device_ = &device;
  link_ = link;
  arithmetic_ = arithmetic;
  activations_ = std::make_shared<ActivationMemory>(activation_bytes);
  meter_.emplace(operations, model_.dit->modules().size());
}

void ForwardRun::Ride(std::unique_ptr<Rider> rider) {
  {
    absl::MutexLock lock(&mutex_);
    rider_ = std::move(rider);
  }
  TellRider();
}

void ForwardRun::Cancel(absl::Status why) {
  {
    absl::MutexLock lock(&mutex_);
    if (!cancelled_.ok()) return;
    cancelled_ = std::move(why);
  }
  TellRider();
}

bool ForwardRun::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return !cancelled_.ok();
}

void ForwardRun::AwaitRider() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](std::unique_ptr<Rider>* rider) { return *rider != nullptr; }, &rider_));
}

template <typename T>
absl::AnyInvocable<void(T) &&> ForwardRun::Resuming(absl::AnyInvocable<void(T) &&> done) {
  return [this, done = std::move(done)](T given) mutable {
    if (computing_) return std::move(done)(std::move(given));
    Resume([&] { std::move(done)(std::move(given)); });
  };
}

template <typename Piece>
void ForwardRun::Resume(Piece piece) {
  const c10::InferenceMode no_autograd;
  const ActivationMemory::Scope scope(activations_);
  computing_ = true;
  device_->ComputeIn(on_device_);
  piece();
  device_->ComputeIn(nullptr);
  computing_ = false;
  if (pass_->done()) End(absl::OkStatus());
}

void ForwardRun::Begin(absl::AnyInvocable<void(absl::Status) &&> ended) {
  ended_ = std::move(ended);
  Report();
  absl::Status started = meter_->GoOn(std::nullopt);
  if (started.ok()) {
    started = CatchStatus([this] {
      if (link_ != nullptr) TakeDeviceMemory();
      TensorMover* const mover = link_ == nullptr ? nullptr : this;
      pass_.emplace(model_.dit->Forward(call_.inputs, TorchDevice(*device_), arithmetic_, *this, mover));
      Resume([this] { pass_->Start(); });
    });
  }
  if (!started.ok()) End(started);
}

void ForwardRun::TakeDeviceMemory() {
  const absl::StatusOr<absl::Span<std::byte>> memory = rider_->TakeActivations();
  if (!memory.ok()) throw StatusError(memory.status());
  on_device_ = std::make_shared<TensorRegion>(*memory);
}

void ForwardRun::Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) {
  if (module > 0) Report();
  absl::Status paused = meter_->Pause();
  if (!paused.ok()) return std::move(done)(std::move(paused));
  auto go_on = [this, module, done = std::move(done)](absl::StatusOr<Lease> lease) mutable {
    if (lease.ok()) {
      absl::Status gone_on = meter_->GoOn(module);
      if (!gone_on.ok()) lease = std::move(gone_on);
    }
    std::move(done)(std::move(lease));
  };
  rider_->Acquire(module, Resuming<absl::StatusOr<Lease>>(std::move(go_on)));
}

void ForwardRun::ToDevice(const at::Tensor& from, const at::Tensor& to, Done done) {
  const absl::Status paused = meter_->Pause();
  if (!paused.ok()) return std::move(done)(paused);
  auto go_on = [this, done = std::move(done)](absl::Status moved) mutable {
    if (moved.ok()) moved = meter_->GoOn(std::nullopt);
    std::move(done)(std::move(moved));
  };
  link_->ToDevice(from, to, Resuming<absl::Status>(std::move(go_on)));
}

// With the output on the host nothing is left to be issued.
void ForwardRun::ToHost(const at::Tensor& from, const at::Tensor& to, Done done) {
  const absl::Status paused = meter_->Pause();
  if (!paused.ok()) return std::move(done)(paused);
  link_->ToHost(from, to, Resuming(std::move(done)));
}

void ForwardRun::Finish(absl::Status status) {
  std::optional<ForwardResult> result;
  if (status.ok()) status = CatchStatus([&] { result = Result(); });
  if (status.ok()) {
    model_.LearnComputing(rider_->device(), {ShapeOf(call_.inputs), arithmetic_}, meter_->modules());
  }
  pass_.reset();
  if (activations_ != nullptr) activations_->Close();
  std::unique_ptr<Rider> rider;
  {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](int* telling) { return *telling == 0; }, &telling_));
    rider = std::move(rider_);
  }
  // As TellRider. What the device still brings to the host is the last that goes.
  if (on_device_ != nullptr) on_device_->Own(std::move(rider));
  on_device_.reset();
  rider.reset();
  if (result) {
    result->account.total = clock_.Now() - begun_;
    Tell(*std::move(result));
  } else {
    Tell(std::move(status));
  }
}

void ForwardRun::Tell(absl::StatusOr<ForwardResult> result) {
  Engine::DoneCallback done;
  {
    const absl::MutexLock lock(&mutex_);
    done = std::exchange(done_, nullptr);
  }
  if (done) std::move(done)(std::move(result));
}

void ForwardRun::TellRider() {
  absl::Status why;
  {
    absl::MutexLock lock(&mutex_);
    if (rider_ == nullptr || cancelled_.ok()) return;
    why = cancelled_;
    ++telling_;
  }
  rider_->Cancel(why);
  absl::MutexLock lock(&mutex_);
  --telling_;
}

void ForwardRun::End(absl::Status status) {
  auto ended = std::move(ended_);
  std::move(ended)(std::move(status));
}

ForwardResult ForwardRun::Result() {
  const c10::InferenceMode no_autograd;
  ForwardResult result;
  result.output = pass_->Result();
  const absl::Status measured = meter_->End();
  if (!measured.ok()) throw StatusError(measured);
  const RiderAccount account = rider_->account();
  result.account.queue = account.queue;
  result.account.stall = meter_->stall().value_or(account.stall);
  result.account.compute = meter_->compute();
  result.account.disk_read_bytes = account.disk_read_bytes;
  result.account.device_copy_bytes = account.device_copy_bytes;
  result.account.peak_device_bytes = account.peak_device_bytes;
  result.account.riders = account.most_riders;
  result.account.device = device_->name();
  result.account.non_finite_elements = CountNonFinite(result.output);
  return result;
}

void ForwardRun::Report() {
  if (progress_ == nullptr) return;
  const RiderAccount account = rider_->account();
  ForwardProgress progress;
  progress.admitted = true;
  progress.modules_done = account.modules_done;
  progress.modules_total = model_.dit->modules_used();
  progress.disk_read_bytes = account.disk_read_bytes;
  progress.device_copy_bytes = account.device_copy_bytes;
  progress_(progress);
}

}  // namespace ditserve
