#include "server/engine/local_engine.h"

#include <ATen/Parallel.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <functional>
#include <list>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "core/base/doorbell.h"
#include "core/base/error_details.h"
#include "core/base/executor.h"
#include "core/base/status_macros.h"
#include "core/memory/ledger.h"
#include "core/residency/pressure_guard.h"
#include "core/residency/transfer_engine.h"
#include "models/activation_memory.h"
#include "models/errors.h"
#include "models/weights.h"
#include "server/engine/forward_run.h"
#include "server/engine/model_loader.h"
#include "server/engine/planner.h"
#include "server/engine/served_model.h"
#include "server/engine/tensor_link.h"
#include "server/engine/watchdog.h"

namespace ditserve {
namespace {

// How often a look is taken at what other processes need.
constexpr absl::Duration kPressureInterval = absl::Seconds(1);

// How often the device is asked whether it is lost.
constexpr absl::Duration kWatchInterval = absl::Milliseconds(250);

// How often a draining engine looks. It sleeps in between: a mutex' timed waits follow the wall clock.
constexpr absl::Duration kDrainPoll = absl::Milliseconds(5);

class LocalEngineImpl final : public LocalEngine {
 public:
  LocalEngineImpl(const LocalEngineOptions& options, Device* device, const Clock* clock)
      : clock_(*clock),
        device_(device),
        ledger_({options.host_budget_bytes, options.device_budget_bytes}),
        expected_(options.models),
        threads_(options.threads),
        on_device_lost_(options.on_device_lost) {}

  absl::Status Start(const LocalEngineOptions& options) {
    DITSERVE_ASSIGN_OR_RETURN(host_, MakeArena(Memory::kHost));
    DITSERVE_ASSIGN_OR_RETURN(of_device_, MakeArena(device_->memory()));
    DITSERVE_ASSIGN_OR_RETURN(transfers_, TransferEngine::Make(host_.get(), &ledger_, options.transfer_threads));
    // Here as well: threads that predict what a pass takes count on as many as the executor computes with.
    if (threads_ > 0) at::set_num_threads(threads_);
    executor_ = std::make_unique<Executor>(
        [threads = threads_] {
          if (threads > 0) at::set_num_threads(threads);
        },
        &clock_);
    DITSERVE_RETURN_IF_ERROR(BeginOperations());
    if (!device_->computes_in_host_memory()) {
      DITSERVE_ASSIGN_OR_RETURN(link_, TensorLink::Make(device_, host_.get(), &ledger_, executor_.get()));
      watchdog_ = std::make_unique<Watchdog>(device_);
    }
    residency_ = std::make_unique<ResidencyManager>(
        options.residency, std::vector<ResidencyManager::ComputingDevice>{{device_, executor_.get()}},
        std::vector<Arena*>{host_.get(), of_device_.get()}, &ledger_, transfers_.get(), &clock_);
    guard_ = std::make_unique<PressureGuard>(device_, residency_.get());
    follow_pressure_ = options.follow_pressure;
    keeper_ = std::thread([this] { Keep(); });
    return absl::OkStatus();
  }

  ~LocalEngineImpl() override {
    Drain(absl::ZeroDuration());
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
      changed_.Ring();
    }
    if (keeper_.joinable()) keeper_.join();
    if (link_ != nullptr) link_->Settle();
    executor_.reset();   // Nobody acquires any more.
    transfers_.reset();  // What was under way arrives.
    residency_.reset();
  }

  absl::Status LoadModel(const ModelSource& source) override {
    DITSERVE_ASSIGN_OR_RETURN(OpenedModel opened, OpenModel(source));
    Add(source.name, std::move(opened));
    return absl::OkStatus();
  }

  std::vector<ModelInfo> Models() const override {
    absl::MutexLock lock(&mutex_);
    std::vector<ModelInfo> infos;
    for (const auto& model : models_) {
      infos.push_back(
          {model->name, true, model->parameters, model->stored_bytes, model->dit.get(), model->stored_dtypes});
    }
    for (size_t i = models_.size(); i < expected_.size(); ++i) infos.push_back({expected_[i]});
    return infos;
  }

  absl::StatusOr<std::vector<std::vector<Tier>>> ModuleTiers(const std::string& name) const override {
    const ServedModel* const model = Find(name);
    if (model == nullptr) return absl::NotFoundError(absl::StrCat("no model is named '", name, "'"));
    return residency_->ModuleTiers(model->id);
  }

  ResidencySnapshot Residency() const override {
    ResidencySnapshot snapshot = residency_->Snapshot();
    snapshot.host_unpinned_bytes = device_->unpinned_bytes();
    const absl::StatusOr<MemoryStatus> memory = device_->MemoryStatusOf(Memory::kDevice);
    if (memory.ok()) {  // Where the device does not tell, nobody else is known to hold any.
      const int64_t own = device_->computes_in_host_memory() ? OwnHostMemoryBytes() : snapshot.device.total_bytes();
      snapshot.other_processes_bytes = std::max<int64_t>(0, memory->total_bytes - memory->available_bytes - own);
    }
    return snapshot;
  }

  absl::StatusOr<int64_t> MemoryBytes(Memory memory) const override {
    DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus status, device_->MemoryStatusOf(memory));
    return status.total_bytes;
  }

  absl::StatusOr<ForwardPlan> Plan(const PlanCall& call) const override {
    ServedModel* const model = Find(call.model);
    if (model == nullptr) return absl::NotFoundError(absl::StrCat("no model is named '", call.model, "'"));
    return Planner(*residency_, *device_, *model).Plan(call);
  }

  absl::Status Loss() const override {
    const absl::MutexLock lock(&mutex_);
    return loss_;
  }

  absl::Status SetBudget(Memory memory, int64_t bytes) override { return residency_->SetBudget(memory, bytes); }

  std::shared_ptr<ForwardHandle> Submit(ForwardCall forward, ProgressCallback progress, DoneCallback done) override;

  void Drain(absl::Duration timeout) override {
    const absl::Duration deadline = clock_.Now() + timeout;
    {
      absl::MutexLock lock(&mutex_);
      draining_ = true;
    }
    while (!Calls().empty() && clock_.Now() < deadline) absl::SleepFor(kDrainPoll);
    for (const std::shared_ptr<ForwardRun>& call : Calls())
      call->Cancel(absl::UnavailableError("the server is stopping"));
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &LocalEngineImpl::Idle));
  }

 private:
  absl::StatusOr<std::unique_ptr<Arena>> MakeArena(Memory memory) const {
    DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus status, device_->MemoryStatusOf(memory));
    return Arena::Make(device_, memory, Arena::kAddressesPerByte * status.total_bytes);
  }

  // On the executor.
  absl::Status BeginOperations() {
    absl::Status status;
    absl::Notification done;
    executor_->Post([&] {
      status = device_->BeginOperations();
      done.Notify();
    });
    done.WaitForNotification();
    return status;
  }

  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return calls_.empty(); }
  std::list<std::shared_ptr<ForwardRun>> Calls() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return calls_;
  }

  void Add(const std::string& name, OpenedModel opened) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::unique_ptr<Rider>> Join(const std::shared_ptr<ForwardRun>& call);
  // On the executor.
  void Begin(const std::shared_ptr<ForwardRun>& call, double work);

  ServedModel* Find(const std::string& name) const {
    absl::MutexLock lock(&mutex_);
    const auto found = std::find_if(models_.begin(), models_.end(), [&](const auto& m) { return m->name == name; });
    return found == models_.end() ? nullptr : found->get();
  }

  // Takes a call out, and hands it to the last who needs it.
  void End(const std::shared_ptr<ForwardRun>& call, absl::Status status) {
    call->Finish(std::move(status));
    absl::MutexLock lock(&mutex_);
    calls_.remove(call);
  }

  void FollowPressure() {
    const absl::Status checked = guard_->Check();
    if (!checked.ok()) spdlog::warn("memory pressure: {}", checked.ToString());
  }

  // Says once that host memory could not be pinned.
  void WarnOfUnpinned() {
    if (warned_of_unpinned_ || device_->unpinned_bytes() == 0) return;
    warned_of_unpinned_ = true;
    spdlog::warn(
        "{}: host memory could not be pinned, so copies to the device are slower and block; the limit of locked memory "
        "(ulimit -l) or the host forbids it. ditserve_host_unpinned_bytes tells how much",
        device_->name());
  }

  // What a lost device answers can be anything; what is told is that it is lost.
  absl::Status Explain(const absl::Status& status) {
    const absl::Status health = absl::IsInternal(status) ? device_->Health() : absl::OkStatus();
    return health.ok() ? status : health;
  }

  // Ends everything, once, if the device is lost. One that hangs gives nothing back that a call waits for, so calls are
  // told at once.
  void WatchDevice() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::Status health = device_->Health();
    if (health.ok()) health = watchdog_->Check(clock_.Now());
    if (health.ok()) return;
    {
      absl::MutexLock lock(&mutex_);
      loss_ = health;
    }
    for (const std::shared_ptr<ForwardRun>& call : Calls()) {
      call->Cancel(health);
      call->Tell(health);
    }
    if (on_device_lost_) on_device_lost_(health);
  }

  // Ends calls at their deadlines, follows the pressure on memory, and watches the device.
  void Keep() {
    absl::Duration look = follow_pressure_ ? clock_.Now() : absl::InfiniteDuration();
    absl::Duration watch = watchdog_ == nullptr ? absl::InfiniteDuration() : clock_.Now();
    absl::MutexLock lock(&mutex_);
    while (!stopping_) {
      const absl::Duration now = clock_.Now();
      absl::Duration next = std::min(look, watch);
      std::vector<std::shared_ptr<ForwardRun>> late;
      for (const std::shared_ptr<ForwardRun>& call : calls_) {
        if (call->deadline() > now) {
          next = std::min(next, call->deadline());
        } else if (!call->cancelled()) {
          late.push_back(call);
        }
      }
      if (late.empty() && std::min(look, watch) > now) {
        mutex_.Unlock();
        changed_.WaitFor(next - now);
        mutex_.Lock();
        continue;
      }
      mutex_.Unlock();  // What is done here may free memory, and ends calls.
      for (const std::shared_ptr<ForwardRun>& call : std::exchange(late, {})) {
        call->Cancel(absl::DeadlineExceededError("the request's deadline has passed"));
      }
      if (look <= now) {
        FollowPressure();
        look = now + kPressureInterval;
      }
      if (watch <= now) {
        WatchDevice();
        WarnOfUnpinned();
        watch = now + kWatchInterval;
      }
      mutex_.Lock();
      if (!loss_.ok()) watch = absl::InfiniteDuration();
    }
  }

  const Clock& clock_;
  Device* const device_;
  Ledger ledger_;
  const std::vector<std::string> expected_;
  const int threads_;
  const std::function<void(const absl::Status&)> on_device_lost_;
  std::unique_ptr<Arena> host_, of_device_;
  std::unique_ptr<TransferEngine> transfers_;
  // Null where the device computes in host memory.
  std::unique_ptr<TensorLink> link_;
  std::unique_ptr<Watchdog> watchdog_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<ResidencyManager> residency_;
  std::unique_ptr<PressureGuard> guard_;
  bool follow_pressure_ = false;
  bool warned_of_unpinned_ = false;  // The keeper's.

  mutable absl::Mutex mutex_;
  Doorbell changed_;  // Calls came, or the engine stops.
  std::vector<std::unique_ptr<ServedModel>> models_ ABSL_GUARDED_BY(mutex_);
  std::list<std::shared_ptr<ForwardRun>> calls_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status loss_ ABSL_GUARDED_BY(mutex_);  // Of the device.
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread keeper_;
};

void LocalEngineImpl::Add(const std::string& name, OpenedModel opened) {
  auto model = std::make_unique<ServedModel>();
  model->name = name;
  model->dit = std::move(opened.dit);
  model->device = at::Device(device_->name()).type();
  model->stored_bytes = opened.stored_bytes;
  model->parameters = opened.weights->parameters();
  for (ModuleIndex i = 0; i < opened.weights->size(); ++i) {
    for (const StoredTensor* stored : opened.weights->module(i).stored) model->stored_dtypes.push_back(stored->dtype);
  }
  model->id = residency_->AddModel(std::move(opened.weights));
  absl::MutexLock lock(&mutex_);
  models_.push_back(std::move(model));
}

std::shared_ptr<ForwardHandle> LocalEngineImpl::Submit(ForwardCall forward, ProgressCallback progress,
                                                       DoneCallback done) {
  ServedModel* const model = Find(forward.model);
  if (model == nullptr) {
    std::move(done)(absl::NotFoundError(absl::StrCat("no model is named '", forward.model, "'")));
    return nullptr;
  }
  auto explained = [this, done = std::move(done)](absl::StatusOr<ForwardResult> result) mutable {
    if (!result.ok()) result = Explain(result.status());
    std::move(done)(std::move(result));
  };
  forward.inputs.activations = ScalarTypeOf(forward.profile.computation.dtype);
  auto call = std::make_shared<ForwardRun>(std::move(forward), *model, *device_, link_.get(), clock_,
                                           std::move(progress), std::move(explained));
  {
    absl::MutexLock lock(&mutex_);
    if (!draining_) calls_.push_back(call);
    changed_.Ring();
  }
  absl::StatusOr<std::unique_ptr<Rider>> rider = Join(call);
  if (rider.ok()) {
    call->Ride(*std::move(rider));
  } else {
    End(call, rider.status());  // Here and now: the executor may be at a module for seconds.
  }
  return call;
}

void LocalEngineImpl::Begin(const std::shared_ptr<ForwardRun>& call, double work) {
  if (watchdog_ != nullptr) watchdog_->Began(call.get(), work, clock_.Now());
  call->Begin([this, call](absl::Status status) {
    if (watchdog_ != nullptr) watchdog_->Ended(call.get(), status.ok(), clock_.Now());
    End(call, std::move(status));
  });
}

absl::StatusOr<std::unique_ptr<Rider>> LocalEngineImpl::Join(const std::shared_ptr<ForwardRun>& call) {
  {
    absl::MutexLock lock(&mutex_);
    if (draining_) return absl::UnavailableError("the server is stopping");
    DITSERVE_RETURN_IF_ERROR(loss_);
  }
  const ForwardShape shape = ShapeOf(call->call().inputs);
  int64_t activation_bytes = 0;
  double work = 0;
  DITSERVE_RETURN_IF_ERROR(CatchStatus([&] {
    activation_bytes = call->model().ActivationBytes(shape, call->arithmetic());
    if (watchdog_ == nullptr) return;
    for (const double of_module : call->model().WorkOf({shape, call->arithmetic()})) work += of_module;
  }));
  call->SetActivationBytes(activation_bytes);
  RideOptions options{activation_bytes, call->call().priority, call->call().join};
  options.skips = call->model().dit->unused_modules();
  absl::StatusOr<std::unique_ptr<Rider>> rider =
      residency_->Join(call->model().id, call->call().profile, options, [this, call, work](absl::Status admitted) {
        call->AwaitRider();
        if (!admitted.ok()) return End(call, std::move(admitted));
        Begin(call, work);
      });
  if (absl::IsFailedPrecondition(rider.status())) {
    return Planner(*residency_, *device_, call->model()).Refuse(rider.status(), shape, call->call().profile);
  }
  return rider;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalEngine>> LocalEngine::Make(const LocalEngineOptions& options, Device* device,
                                                               const Clock* clock) {
  ActivationMemory::InstallAllocator();  // Before the engine's threads.
  auto engine = std::make_unique<LocalEngineImpl>(options, device, clock);
  DITSERVE_RETURN_IF_ERROR(engine->Start(options));
  return engine;
}

}  // namespace ditserve
