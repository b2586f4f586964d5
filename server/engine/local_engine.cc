#include "server/engine/local_engine.h"

#include <ATen/Parallel.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <functional>
#include <list>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "core/base/doorbell.h"
#include "core/base/status_macros.h"
#include "core/memory/ledger.h"
#include "core/placement/route_maker.h"
#include "core/residency/pressure_guard.h"
#include "core/residency/transfers/transfer_engine.h"
#include "models/activation_memory.h"
#include "models/errors.h"
#include "models/weights.h"
#include "server/engine/device_watch.h"
#include "server/engine/engine_device.h"
#include "server/engine/forward_run.h"
#include "server/engine/model_loader.h"
#include "server/engine/pass_modulation.h"
#include "server/engine/planner.h"
#include "server/engine/router.h"
#include "server/engine/served_model.h"
#include "server/engine/torch_device.h"

namespace ditserve {
namespace {

// How often a look is taken at memory, and what other processes need of it.
constexpr absl::Duration kMemoryInterval = absl::Seconds(1);

// Steps of a usual schedule: QwenImagePipeline's own, in diffusers.
constexpr int64_t kUsualSteps = 50;

// How often a draining engine looks. It sleeps in between: a mutex' timed waits follow the wall clock.
constexpr absl::Duration kDrainPoll = absl::Milliseconds(5);

absl::Status Check(const std::vector<BudgetedDevice>& devices) {
  if (devices.empty()) return absl::InvalidArgumentError("an engine needs a device");
  for (size_t i = 0; i < devices.size(); ++i) {
    const Device& device = *devices[i].device;
    if (device.memory() != DeviceMemory(static_cast<int>(i))) {
      return absl::InvalidArgumentError(absl::StrCat("device ", device.name(), " is not number ", i, " by its memory"));
    }
    if (device.computes_in_host_memory() && devices.size() > 1) {
      return absl::InvalidArgumentError(absl::StrCat("device ", device.name(), " computes alone or not at all"));
    }
  }
  return absl::OkStatus();
}

// By Index(Memory).
std::vector<int64_t> Budgets(const LocalEngineOptions& options, const std::vector<BudgetedDevice>& devices) {
  std::vector<int64_t> bytes = {options.host_budget_bytes};
  for (const BudgetedDevice& device : devices) bytes.push_back(device.budget_bytes);
  return bytes;
}

class LocalEngineImpl final : public LocalEngine {
 public:
  LocalEngineImpl(const LocalEngineOptions& options, const std::vector<BudgetedDevice>& devices, const Clock* clock)
      : clock_(*clock),
        ledger_(Budgets(options, devices)),
        expected_(options.models),
        threads_(ComputingThreads(options.threads)),
        on_device_lost_(options.on_device_lost) {}

  absl::Status Start(const LocalEngineOptions& options, const std::vector<BudgetedDevice>& devices) {
    DITSERVE_ASSIGN_OR_RETURN(host_, MakeArena(devices.front().device, Memory::kHost));
    std::vector<Device*> all;
    for (const BudgetedDevice& each : devices) all.push_back(each.device);
    DITSERVE_ASSIGN_OR_RETURN(transfers_, TransferEngine::Make(host_.get(), &ledger_, all, options.transfer_threads));
    // Here as well: threads that predict what a pass takes count on as many as an executor computes with.
    at::set_num_threads(threads_);
    std::vector<ResidencyManager::ComputingDevice> computing;
    std::vector<Arena*> arenas = {host_.get()};
    for (const BudgetedDevice& each : devices) devices_.emplace_back(each.device);
    if (devices_.front().watchdog != nullptr) {
      watch_ = std::make_unique<DeviceWatch>(devices_, clock_, [this](const absl::Status& loss) { EndFor(loss); });
    }
    for (size_t i = 0; i < devices_.size(); ++i) {
      EngineDevice& device = devices_[i];
      DITSERVE_RETURN_IF_ERROR(
          device.Begin(host_.get(), &ledger_, threads_, devices[i].modulation_bytes, &clock_, transfers_.get()));
      computing.push_back({device.device, device.executor.get()});
      arenas.push_back(device.arena.get());
    }
    if (watch_ != nullptr) watch_->Begun();
    residency_ = std::make_unique<ResidencyManager>(options.residency, std::move(computing), std::move(arenas),
                                                    &ledger_, transfers_.get(), &clock_);
    guard_ = std::make_unique<PressureGuard>(std::move(all), residency_.get());
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
    watch_.reset();
    for (EngineDevice& each : devices_) each.StopComputing();
    transfers_.reset();  // What was under way arrives.
    residency_.reset();
    for (EngineDevice& each : devices_) each.Release();
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
    for (const EngineDevice& each : devices_) snapshot.host_unpinned_bytes += each.device->unpinned_bytes();
    for (size_t i = 0; i < devices_.size(); ++i) {
      snapshot.devices[i].modulation = devices_[i].modulation->Info();
      const Device& device = *devices_[i].device;
      const absl::StatusOr<MemoryStatus> memory = device.MemoryStatusOf(device.memory());
      if (!memory.ok()) continue;  // Where the device does not tell, nobody else is known to hold any.
      const int64_t own =
          device.computes_in_host_memory() ? OwnHostMemoryBytes() : snapshot.devices[i].memory.usage.total_bytes();
      snapshot.devices[i].other_processes_bytes =
          std::max<int64_t>(0, memory->total_bytes - memory->available_bytes - own);
    }
    return snapshot;
  }

  absl::StatusOr<int64_t> MemoryBytes(Memory memory) const override {
    const size_t of_device = IsHost(memory) ? 0 : static_cast<size_t>(DeviceOf(memory));
    DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus status, devices_[of_device].device->MemoryStatusOf(memory));
    return status.total_bytes;
  }

  absl::StatusOr<ForwardPlan> Plan(const PlanCall& call) const override {
    ServedModel* const model = Find(call.model);
    if (model == nullptr) return absl::NotFoundError(absl::StrCat("no model is named '", call.model, "'"));
    DITSERVE_ASSIGN_OR_RETURN(std::vector<RideOptions> ways, WaysFor(devices_, *model, call.shape, call.profile));
    for (RideOptions& way : ways) way.skips = model->Skips(call.known_timestep);
    const size_t chosen = ChooseDevice(residency_->Outlooks(model->id, call.profile, ways));
    return PlannerOf(ways[chosen].device, *model).Plan(call);
  }

  absl::Status Loss() const override {
    const absl::MutexLock lock(&mutex_);
    return loss_;
  }

  absl::Status SetBudget(Memory memory, int64_t bytes) override { return residency_->SetBudget(memory, bytes); }
  absl::Status CheckBudget(Memory memory, int64_t bytes) const override {
    return residency_->CheckBudget(memory, bytes);
  }

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
  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return calls_.empty(); }
  std::list<std::shared_ptr<ForwardRun>> Calls() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return calls_;
  }

  void Add(const std::string& name, OpenedModel opened) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::unique_ptr<Rider>> Join(const std::shared_ptr<ForwardRun>& call);
  // On the executor.
  void Begin(const std::shared_ptr<ForwardRun>& call, double work);

  // Of a pass on the device.
  PassModulation ModulationOn(const EngineDevice& on, ForwardRun& call) {
    const ServedModel& model = call.model();
    const Profile& profile = call.call().profile;
    const int device = DeviceOf(on.device->memory());
    const at::ScalarType arithmetic = ArithmeticOn(*on.device, profile);
    ModulationKey like = {model.id, residency_->FormsOf(model.id, profile, device, model.dit->modulation_modules()),
                          DTypeOf(arithmetic)};
    const ForwardCall& forward = call.call();
    const std::vector<float> first = Distinct(TimestepsOf(forward.inputs, model.dit->config(), arithmetic));
    if (!forward.denoising) return {on.modulation.get(), std::move(like), first, first.size()};
    ForwardInputs all;
    all.timestep = LoopTimesteps(*forward.denoising, forward.inputs.latents.scalar_type());
    all.activations = forward.inputs.activations;
    return {on.modulation.get(), std::move(like), Distinct(TimestepsOf(all, model.dit->config(), arithmetic)),
            first.size()};
  }
  Planner PlannerOf(int device, ServedModel& model) const {
    return Planner(*residency_, *devices_[static_cast<size_t>(device)].device, model);
  }

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

  // Of the first device that is lost.
  absl::Status Health() const {
    absl::Status health;
    for (const EngineDevice& each : devices_) health.Update(each.device->Health());
    return health;
  }

  // Says where a usual loop in bfloat16 has rows of modulation that are not kept.
  void WarnOfFewRows(const ServedModel& model) const {
    for (const EngineDevice& each : devices_) {
      const DType dtype = ActivationDType(each.device->ArithmeticDType(DType::kBFloat16));
      const int64_t row_bytes = ModulationElements(model.dit->config()) * SizeOf(dtype);
      const int64_t bytes = each.modulation->size_bytes();
      if (bytes == 0 || bytes >= kUsualSteps * row_bytes) continue;
      spdlog::warn(
          "{}: of model {} modulation of {} timesteps is kept: a loop of {} steps moves a third of the weights again "
          "at each step beyond those, unless memory.modulation is {} bytes",
          each.device->name(), model.name, bytes / row_bytes, kUsualSteps, kUsualSteps * row_bytes);
    }
  }

  // Says once that host memory could not be pinned.
  void WarnOfUnpinned() {
    if (warned_of_unpinned_) return;
    const auto unable = std::find_if(devices_.begin(), devices_.end(),
                                     [](const EngineDevice& each) { return each.device->unpinned_bytes() > 0; });
    if (unable == devices_.end()) return;
    warned_of_unpinned_ = true;
    spdlog::warn(
        "{}: host memory could not be pinned, so copies to the device are slower and may block; the device's driver "
        "refuses it on this host, or in this container. ditserve_host_unpinned_bytes tells how much",
        unable->device->name());
  }

  // What a lost device answers can be anything; what is told is that it is lost.
  absl::Status Explain(const absl::Status& status) const {
    const absl::Status health = absl::IsInternal(status) ? Health() : absl::OkStatus();
    return health.ok() ? status : health;
  }

  // Ends everything. A device that hangs gives nothing back that a call waits for, so calls are told first, and it may
  // be that to cancel one takes for ever: to give memory back takes the device.
  void EndFor(const absl::Status& loss) ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      loss_ = loss;
    }
    if (on_device_lost_) on_device_lost_(loss);
    const std::list<std::shared_ptr<ForwardRun>> calls = Calls();
    for (const std::shared_ptr<ForwardRun>& call : calls) call->Tell(loss);
    for (const std::shared_ptr<ForwardRun>& call : calls) call->Cancel(loss);
  }

  // Ends calls at their deadlines, and looks after memory.
  void Keep() {
    absl::Duration look = clock_.Now();
    absl::MutexLock lock(&mutex_);
    while (!stopping_) {
      const absl::Duration now = clock_.Now();
      absl::Duration next = look;
      std::vector<std::shared_ptr<ForwardRun>> late;
      for (const std::shared_ptr<ForwardRun>& call : calls_) {
        if (call->deadline() > now) {
          next = std::min(next, call->deadline());
        } else if (!call->cancelled()) {
          late.push_back(call);
        }
      }
      if (late.empty() && look > now) {
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
        if (follow_pressure_) FollowPressure();
        WarnOfUnpinned();
        look = now + kMemoryInterval;
      }
      mutex_.Lock();
    }
  }

  const Clock& clock_;
  Ledger ledger_;
  const std::vector<std::string> expected_;
  const int threads_;
  const std::function<void(const absl::Status&)> on_device_lost_;
  std::unique_ptr<Arena> host_;
  std::unique_ptr<TransferEngine> transfers_;
  std::vector<EngineDevice> devices_;
  std::unique_ptr<ResidencyManager> residency_;
  std::unique_ptr<PressureGuard> guard_;
  bool follow_pressure_ = false;
  bool warned_of_unpinned_ = false;  // The keeper's.

  mutable absl::Mutex mutex_;
  Doorbell changed_;  // Calls came, or the engine stops.
  std::vector<std::unique_ptr<ServedModel>> models_ ABSL_GUARDED_BY(mutex_);
  std::list<std::shared_ptr<ForwardRun>> calls_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status loss_ ABSL_GUARDED_BY(mutex_);  // Of a device.
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread keeper_;
  std::unique_ptr<DeviceWatch> watch_;  // Where devices can be lost.
};

void LocalEngineImpl::Add(const std::string& name, OpenedModel opened) {
  auto model = std::make_unique<ServedModel>();
  model->name = name;
  model->dit = std::move(opened.dit);
  model->device = at::Device(devices_.front().device->name()).type();
  {
    const absl::MutexLock lock(&model->mutex);
    model->paces.resize(devices_.size());
  }
  model->stored_bytes = opened.stored_bytes;
  model->parameters = opened.weights->parameters();
  for (ModuleIndex i = 0; i < opened.weights->size(); ++i) {
    for (const StoredTensor* stored : opened.weights->module(i).stored) model->stored_dtypes.push_back(stored->dtype);
  }
  model->id = residency_->AddModel(std::move(opened.weights));
  WarnOfFewRows(*model);
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
  forward.inputs.activations = ScalarTypeOf(ActivationDType(forward.profile.computation.dtype));
  auto call =
      std::make_shared<ForwardRun>(std::move(forward), *model, clock_, std::move(progress), std::move(explained));
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
  Watchdog* const watchdog = devices_[static_cast<size_t>(call->device())].watchdog.get();
  if (watchdog != nullptr) watchdog->Began(call.get(), work, clock_.Now());
  const auto ended = [this, pass = call.get(), watchdog](bool has_output) {
    if (watchdog == nullptr) return;
    // What a step that was skipped took tells nothing of a whole one.
    if (has_output && pass->skipped()) watchdog->Began(pass, /*work=*/0, clock_.Now());
    watchdog->Ended(pass, has_output, clock_.Now());
  };
  call->Begin(
      [this, call, ended](absl::Status status) {
        ended(status.ok());
        End(call, std::move(status));
      },
      [this, pass = call.get(), watchdog, work, ended] {
        ended(/*has_output=*/true);
        if (watchdog != nullptr) watchdog->Began(pass, work, clock_.Now());
      });
}

absl::StatusOr<std::unique_ptr<Rider>> LocalEngineImpl::Join(const std::shared_ptr<ForwardRun>& call) {
  {
    absl::MutexLock lock(&mutex_);
    if (draining_) return absl::UnavailableError("the server is stopping");
    DITSERVE_RETURN_IF_ERROR(loss_);
  }
  const ForwardShape& shape = call->shape();
  const Profile& profile = call->call().profile;
  const std::optional<Denoising>& denoising = call->call().denoising;
  const int64_t loop_bytes = denoising ? LoopBytes(call->call().inputs, *denoising) : 0;
  DITSERVE_ASSIGN_OR_RETURN(std::vector<RideOptions> ways,
                            WaysFor(devices_, call->model(), shape, profile, loop_bytes));
  DITSERVE_RETURN_IF_ERROR(CheckComputation(profile, *devices_[static_cast<size_t>(ways.front().device)].device));
  ForwardShape of_pass = shape;
  if (denoising) of_pass.timesteps = 1;        // Of later ones.
  std::vector<double> works(devices_.size());  // For watchdogs: of one pass.
  std::vector<PassModulation> modulations;     // By way.
  for (RideOptions& way : ways) {
    modulations.push_back(ModulationOn(devices_[static_cast<size_t>(way.device)], *call));
    way.skips = call->model().Skips(modulations.back().known());
    way.priority = call->call().priority;
    way.join = call->call().join;
    const auto device = static_cast<size_t>(way.device);
    const EngineDevice& on = devices_[device];
    if (on.watchdog == nullptr) continue;
    DITSERVE_RETURN_IF_ERROR(CatchStatus([&] {
      for (const double of_module : call->model().WorkOf({of_pass, ArithmeticOn(*on.device, profile)})) {
        works[device] += of_module;
      }
    }));
  }
  size_t way = 0;
  const auto choose = [&way](absl::Span<const RideOutlook> outlooks) { return way = ChooseDevice(outlooks); };
  absl::StatusOr<std::unique_ptr<Rider>> rider =
      residency_->Join(call->model().id, profile, ways, choose, [this, call, works](absl::Status admitted) {
        call->AwaitRider();
        if (!admitted.ok()) return End(call, std::move(admitted));
        Begin(call, works[static_cast<size_t>(call->device())]);
      });
  if (absl::IsFailedPrecondition(rider.status())) {
    PlanCall refused{.shape = shape, .profile = profile};
    refused.known_timestep = modulations[way].known();
    if (denoising) {
      refused.beside_bytes = [&](int64_t height, int64_t width) {
        return LoopBytes(call->call().inputs, *denoising, height, width);
      };
    }
    return PlannerOf(ways[way].device, call->model()).Refuse(rider.status(), refused);
  }
  if (!rider.ok()) return rider;
  const EngineDevice& on = devices_[static_cast<size_t>((*rider)->device())];
  // LibTorch takes of the host's memory what tensors there take, and activations where those are there too.
  const bool all_on_host = TorchDevice(*on.device).is_cpu();
  const int64_t host_bytes = ways[way].host_bytes + (all_on_host ? ways[way].activation_bytes : 0);
  call->SetDevice(*on.device, on.link.get(), on.operations.get(), ArithmeticOn(*on.device, profile), host_bytes,
                  std::move(modulations[way]));
  return rider;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalEngine>> LocalEngine::Make(const LocalEngineOptions& options,
                                                               const std::vector<BudgetedDevice>& devices,
                                                               const Clock* clock) {
  DITSERVE_RETURN_IF_ERROR(Check(devices));
  ActivationMemory::InstallAllocator();  // Before the engine's threads.
  auto engine = std::make_unique<LocalEngineImpl>(options, devices, clock);
  DITSERVE_RETURN_IF_ERROR(engine->Start(options, devices));
  return engine;
}

}  // namespace ditserve
