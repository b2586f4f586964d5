#include "server/engine/forward_run.h"

#include <c10/core/InferenceMode.h>

#include <utility>

#include "absl/time/clock.h"
#include "models/errors.h"
#include "models/ops.h"
#include "models/weights.h"
#include "server/engine/compute_pace.h"

namespace ditserve {
namespace {

at::Device TorchDevice(const Device& device) { return at::Device(device.name()); }

}  // namespace

ForwardRun::ForwardRun(ForwardCall call, ServedModel& model, const Device& device, TensorLink* link, const Clock& clock,
                       Engine::ProgressCallback progress, Engine::DoneCallback done)
    : call_(std::move(call)),
      model_(model),
      device_(TorchDevice(device)),
      link_(link),
      arithmetic_(ScalarTypeOf(device.ArithmeticDType(call_.profile.computation.dtype))),
      clock_(clock),
      begun_(clock.Now()),
      deadline_(begun_ + (call_.deadline - absl::Now())),
      progress_(std::move(progress)),
      done_(std::move(done)) {}

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
  resumed_ = clock_.Now();
  piece();
  compute_ += clock_.Now() - resumed_;
  computing_ = false;
  if (pass_->done()) End(absl::OkStatus());
}

void ForwardRun::Begin(absl::AnyInvocable<void(absl::Status) &&> ended) {
  ended_ = std::move(ended);
  Report();
  const absl::Status started = CatchStatus([this] {
    TensorMover* const mover = link_ == nullptr ? nullptr : this;
    pass_.emplace(model_.dit->Forward(call_.inputs, device_, arithmetic_, *this, mover));
    Resume([this] { pass_->Start(); });
  });
  if (!started.ok()) End(started);
}

void ForwardRun::Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) {
  if (module > 0) Report();
  acquired_at_.push_back(compute_ + (computing_ ? clock_.Now() - resumed_ : absl::ZeroDuration()));
  rider_->Acquire(module, Resuming(std::move(done)));
}

void ForwardRun::ToDevice(const at::Tensor& from, const at::Tensor& to, Done done) {
  link_->ToDevice(from, to, Resuming(std::move(done)));
}

void ForwardRun::ToHost(const at::Tensor& from, const at::Tensor& to, Done done) {
  link_->ToHost(from, to, Resuming(std::move(done)));
}

void ForwardRun::Finish(absl::Status status) {
  std::optional<ForwardResult> result;
  if (status.ok()) status = CatchStatus([&] { result = Result(); });
  if (status.ok()) model_.LearnComputing({ShapeOf(call_.inputs), arithmetic_}, TimesBetween(acquired_at_, compute_));
  pass_.reset();
  if (activations_ != nullptr) activations_->Close();
  std::unique_ptr<Rider> rider;
  {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](int* telling) { return *telling == 0; }, &telling_));
    rider = std::move(rider_);
  }
  rider.reset();  // As TellRider.
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
  const RiderAccount account = rider_->account();
  result.account.queue = account.queue;
  result.account.stall = account.stall;
  result.account.compute = compute_;
  result.account.disk_read_bytes = account.disk_read_bytes;
  result.account.device_copy_bytes = account.device_copy_bytes;
  result.account.peak_device_bytes = account.peak_device_bytes;
  result.account.riders = account.most_riders;
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
