#include "server/engine/forward_run.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "core/base/callback_awaiter.h"
#include "models/errors.h"
#include "models/ops.h"
#include "models/weights.h"
#include "server/engine/compute_pace.h"
#include "server/engine/torch_device.h"

namespace ditserve {

namespace {

ForwardShape ShapeOf(const ForwardCall& call) {
  return call.denoising ? ShapeOf(call.inputs, *call.denoising) : ShapeOf(call.inputs);
}

}  // namespace

ForwardRun::ForwardRun(ForwardCall call, ServedModel& model, const Clock& clock, Engine::ProgressCallback progress,
                       Engine::DoneCallback done)
    : call_(std::move(call)),
      shape_(ShapeOf(call_)),
      model_(model),
      clock_(clock),
      begun_(clock.Now()),
      deadline_(begun_ + (call_.deadline - absl::Now())),
      progress_(std::move(progress)),
      done_(std::move(done)),
      queued_(ProfilerRange::kQueue, model_.name) {}

void ForwardRun::SetDevice(Device& device, TensorLink* link, OperationQueue* operations, at::ScalarType arithmetic,
                           int64_t host_bytes, PassModulation modulation) {
  device_ = &device;
  link_ = link;
  arithmetic_ = arithmetic;
  activations_ = std::make_shared<ActivationMemory>(host_bytes);
  modulation_.emplace(std::move(modulation));
  meter_.emplace(operations, &model_.dit->modules());
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

void ForwardRun::Begin(absl::AnyInvocable<void(absl::Status) &&> ended, absl::AnyInvocable<void()> lapped) {
  ended_ = std::move(ended);
  lapped_ = std::move(lapped);
  queued_ = ProfilerRange();
  absl::Status started = meter_->GoOn(std::nullopt);
  if (started.ok()) {
    started = CatchStatus([this] {
      if (link_ != nullptr) TakeDeviceMemory();
      const absl::Status readable = BeginReading();
      if (!readable.ok()) throw StatusError(readable);
      const c10::InferenceMode no_autograd;
      TensorMover* const mover = link_ == nullptr ? nullptr : this;
      const at::TensorOptions rows =
          at::TensorOptions(TorchDevice(*device_)).dtype(ScalarTypeOf(ActivationDType(DTypeOf(arithmetic_))));
      given_ = modulation_->Begin(ModulationElements(model_.dit->config()), rows);
      if (call_.denoising) FindWhatLapsKeep();
      Report();
      if (call_.denoising) {
        pass_.emplace(DenoiseLoop(model_.dit->config(), call_.inputs, *call_.denoising, *this));
      } else {
        pass_.emplace(model_.dit->Forward(call_.inputs, TorchDevice(*device_), arithmetic_, *this, mover, &given_));
      }
      Resume([this] {
        pass_->Start();
        EndReading();
      });
    });
  }
  if (started.ok()) return;
  EndReading();
  End(started);
}

absl::Status ForwardRun::BeginReading() {
  const absl::MutexLock lock(&mutex_);
  if (!done_) return absl::UnavailableError("the call has ended");
  reading_ = true;
  return absl::OkStatus();
}

void ForwardRun::EndReading() {
  std::optional<absl::StatusOr<ForwardResult>> told;
  {
    const absl::MutexLock lock(&mutex_);
    reading_ = false;
    std::swap(told, told_);
  }
  if (told) Tell(*std::move(told));
}

// Awaiting it ends the lap before, and lets the next one ride. Throws StatusError.
class ForwardRun::NextLap : public CallbackAwaiter<absl::Status> {
 public:
  explicit NextLap(ForwardRun& run) : run_(run) {}
  bool await_suspend(std::coroutine_handle<> awaiter) {
    run_.GoOnToNextLap(CallBack(awaiter));
    return Suspends();
  }
  void await_resume() {
    const absl::Status status = CallbackAwaiter::await_resume();
    if (!status.ok()) throw StatusError(status);
  }

 private:
  ForwardRun& run_;
};

Task<at::Tensor> ForwardRun::MakeLap(const ForwardInputs& inputs, int64_t lap) {
  if (lap > 0) {
    lapped_();
    co_await NextLap(*this);
  }
  lap_ = lap;
  const std::optional<StepCacheOptions>& step_cache = call_.denoising->step_cache;
  if (lap > 0) {
    given_ = modulation_->Later(lap_timesteps_[static_cast<size_t>(lap)]);
  } else if (step_cache) {
    step_caches_ = model_.dit->MakeStepCaches(*step_cache, shape_, TorchDevice(*device_), arithmetic_);
  }
  if (lap + 1 < call_.denoising->steps_left()) JoinNextLap(lap + 1);
  TensorMover* const mover = link_ == nullptr ? nullptr : this;
  StepCaches* const caches = step_caches_.empty() ? nullptr : &step_caches_;
  at::Tensor predicted =
      co_await model_.dit->Forward(inputs, TorchDevice(*device_), arithmetic_, *this, mover, &given_, caches);
  // What the next laps read is there: this one's output is.
  if (lap == 0 && !modulation_->known()) modulation_->Publish();
  NoteReused();
  co_return predicted;
}

void ForwardRun::FindWhatLapsKeep() {
  const at::Tensor timesteps = LoopTimesteps(*call_.denoising, call_.inputs.latents.scalar_type());
  ForwardInputs at_step;
  at_step.activations = call_.inputs.activations;
  for (int64_t lap = 0; lap < timesteps.size(0); ++lap) {
    at_step.timestep = timesteps.narrow(0, lap, 1);
    lap_timesteps_.push_back(TimestepsOf(at_step, model_.dit->config(), arithmetic_).front());
    lap_keeps_.push_back(modulation_->Keeps(lap_timesteps_.back()));
  }
}

void ForwardRun::NoteReused() {
  const auto items = static_cast<int64_t>(step_caches_.size());
  const int64_t images = call_.denoising->guidance ? items / 2 : items;
  ReusedStep step{call_.denoising->first_step + lap_};
  skipped_ = false;
  for (int64_t i = 0; i < items; ++i) {
    if (step_caches_[static_cast<size_t>(i)].reused()) ++(i < images ? step.images : step.negative_images);
  }
  if (step.images + step.negative_images == 0) return;
  step.skipped = step.images + step.negative_images == items;
  reused_steps_.push_back(step);
  if (!step.skipped) return;
  skipped_ = true;
  ++steps_skipped_;
  modules_left_out_ += ModulesOf(static_cast<size_t>(lap_)) - rider_->account().modules_done;
}

void ForwardRun::JoinNextLap(int64_t lap) {
  const auto at = static_cast<size_t>(lap);
  lap_keeps_[at] = modulation_->Keeps(lap_timesteps_[at]);  // Another loop may have made it since.
  next_may_begin_.reset();
  std::optional<ModuleIndex> undecided;
  if (shape_.step_cache) undecided = model_.dit->FirstLeftOut(*shape_.step_cache);
  absl::StatusOr<std::unique_ptr<Rider>> next =
      rider_->JoinLap(model_.Skips(lap_keeps_[at]), undecided,
                      [self = shared_from_this()](absl::Status status) { self->NextLapMayBegin(std::move(status)); });
  if (!next.ok()) throw StatusError(next.status());
  next_rider_ = *std::move(next);
}

void ForwardRun::NextLapMayBegin(absl::Status status) {
  next_may_begin_ = std::move(status);
  if (awaits_next_) std::exchange(awaits_next_, nullptr)(*next_may_begin_);
}

void ForwardRun::GoOnToNextLap(Done done) {
  const absl::Status paused = meter_->Pause();
  if (!paused.ok()) return std::move(done)(paused);
  auto go_on = [this, done = std::move(done)](absl::Status status) mutable {
    std::unique_ptr<Rider> ended;
    absl::Status cancelled;
    {
      const absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(
          +[](int* telling) { return *telling == 0; }, &telling_));
      past_ = Account();
      ended = std::exchange(rider_, std::move(next_rider_));
      cancelled = cancelled_;
    }
    ended.reset();
    if (status.ok()) status = cancelled;
    if (status.ok()) status = meter_->GoOn(std::nullopt);
    std::move(done)(std::move(status));
  };
  awaits_next_ = Resuming<absl::Status>(std::move(go_on));
  if (next_may_begin_) NextLapMayBegin(*next_may_begin_);
}

void ForwardRun::Stepped(int64_t step, const at::Tensor& latents) {
  if (progress_ == nullptr) return;
  ForwardProgress progress = Progress();
  progress.steps_done = step + 1;
  const int64_t every = call_.denoising->latents_every;
  if (every > 0 && progress.steps_done % every == 0) {
    progress.latents = latents;
    progress.latents_after = progress.steps_done;
  }
  progress_(progress);
}

RiderAccount ForwardRun::Account() const {
  RiderAccount account = rider_->account();
  account.queue = lap_ == 0 ? account.queue : past_.queue;
  account.stall += past_.stall;
  account.disk_read_bytes += past_.disk_read_bytes;
  account.device_copy_bytes += past_.device_copy_bytes;
  account.peak_device_bytes = std::max(account.peak_device_bytes, past_.peak_device_bytes);
  account.most_riders = std::max(account.most_riders, past_.most_riders);
  account.modules_done += past_.modules_done;
  return account;
}

void ForwardRun::TakeDeviceMemory() {
  const absl::StatusOr<absl::Span<std::byte>> memory = rider_->TakeActivations();
  if (!memory.ok()) throw StatusError(memory.status());
  on_device_ = std::make_shared<TensorRegion>(*memory);
}

void ForwardRun::Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) {
  if (module > 0) Report();
  absl::Status paused = meter_->Pause(module);
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

// With the output on the host nothing is left to be issued. (Where a step cache asks on the way, what is issued before
// the next module is not told from waiting for it.)
void ForwardRun::ToHost(const at::Tensor& from, const at::Tensor& to, Done done) {
  const absl::Status paused = meter_->Pause();
  if (!paused.ok()) return std::move(done)(paused);
  link_->ToHost(from, to, Resuming(std::move(done)));
}

void ForwardRun::Finish(absl::Status status) {
  std::optional<ForwardResult> result;
  if (status.ok()) status = CatchStatus([&] { result = Result(); });
  if (status.ok() && !modulation_->known() && !call_.denoising) {
    model_.LearnComputing(rider_->device(), {shape_, arithmetic_}, meter_->undisturbed());
    modulation_->Publish();
  }
  pass_.reset();
  step_caches_.clear();
  next_rider_.reset();
  modulation_.reset();
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
    if (reading_) {
      told_ = std::move(result);
      return;
    }
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
  const RiderAccount account = Account();
  result.account.queue = account.queue;
  result.account.stall = meter_->stall().value_or(account.stall);
  result.account.compute = meter_->compute();
  result.account.disk_read_bytes = account.disk_read_bytes;
  result.account.device_copy_bytes = account.device_copy_bytes;
  result.account.peak_device_bytes = account.peak_device_bytes;
  result.account.riders = account.most_riders;
  result.account.device = device_->name();
  result.account.non_finite_elements = CountNonFinite(result.output);
  result.reused_steps = reused_steps_;
  return result;
}

void ForwardRun::Report() {
  if (progress_ != nullptr) progress_(Progress());
}

ForwardProgress ForwardRun::Progress() const {
  const RiderAccount account = Account();
  ForwardProgress progress;
  progress.admitted = true;
  progress.modules_done = account.modules_done;
  progress.modules_total = modules_total();
  if (call_.denoising) progress.steps_done = call_.denoising->first_step + lap_;
  progress.steps_skipped = steps_skipped_;
  progress.disk_read_bytes = account.disk_read_bytes;
  progress.device_copy_bytes = account.device_copy_bytes;
  return progress;
}

// Later laps make their modulation too, where it found no room.
int ForwardRun::ModulesOf(size_t lap) const {
  const bool reads = lap == 0 ? modulation_->known() : lap_keeps_[lap];
  const size_t made = model_.dit->modulation_modules().size();
  return model_.dit->modules_used() - static_cast<int>(reads ? made : 0);
}

// Of a loop those of all laps.
int ForwardRun::modules_total() const {
  int total = ModulesOf(0) - modules_left_out_;
  for (size_t lap = 1; lap < lap_keeps_.size(); ++lap) total += ModulesOf(lap);
  return total;
}

}  // namespace ditserve
