#include "core/residency/residency_manager.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

std::vector<PolicyDevice> PolicyDevices(const std::vector<ResidencyManager::ComputingDevice>& devices) {
  std::vector<PolicyDevice> of;
  for (const auto& [device, executor] : devices) of.push_back({device->computes_in_host_memory()});
  return of;
}

std::vector<int64_t> Granules(const std::vector<Arena*>& arenas) {
  std::vector<int64_t> bytes;
  for (const Arena* arena : arenas) bytes.push_back(arena->RoundUp(1));
  return bytes;
}

template <typename Field>
std::vector<int64_t> ByMemory(size_t devices, const Ledger& ledger, Field field) {
  std::vector<int64_t> bytes;
  for (size_t i = 0; i <= devices; ++i) bytes.push_back(std::invoke(field, ledger.Usage(static_cast<Memory>(i))));
  return bytes;
}

// Whether the request does without these modules, and no others.
bool Skips(const Policy::JoinRequest& request, const std::vector<ModuleIndex>& modules) {
  const auto is_skipped = [&](ModuleIndex module) { return !request.routes[static_cast<size_t>(module)].taken(); };
  const auto skipped =
      std::count_if(request.routes.begin(), request.routes.end(), [](const Route& route) { return !route.taken(); });
  return static_cast<size_t>(skipped) == modules.size() && std::all_of(modules.begin(), modules.end(), is_skipped);
}

}  // namespace

ResidencyManager::ResidencyManager(const Options& options, std::vector<ComputingDevice> devices,
                                   std::vector<Arena*> arenas, Ledger* ledger, TransferEngine* transfers,
                                   const Clock* clock)
    : devices_(std::move(devices)),
      arenas_(std::move(arenas)),
      ledger_(ledger),
      transfers_(transfers),
      clock_(clock),
      least_bytes_(ByMemory(devices_.size(), *ledger, &MemoryUsage::total_bytes)),
      policy_(
          options, PolicyDevices(devices_), least_bytes_,
          ByMemory(devices_.size(), *ledger, &MemoryUsage::wanted_bytes),
          [this](FormId from, FormId to) ABSL_NO_THREAD_SAFETY_ANALYSIS { return forms_.Leads(from, to); },
          Granules(arenas_)),
      force_bytes_(arenas_.size()),
      moved_(devices_.size()),
      paces_(devices_.size(), TransferPace(transfers->processors_at_work())),
      leases_(devices_.size()),
      computed_(devices_.size()),
      computed_until_(devices_.size()) {
  const absl::MutexLock lock(&mutex_);
  for (size_t i = 0; i < arenas_.size(); ++i) {
    fixed_bytes_.push_back(arenas_[i]->committed_bytes());
    cached_.push_back(*ledger->TryReserve(static_cast<Memory>(i), MemoryKind::kStaging, 0));
  }
  for (size_t i = 0; i < devices_.size(); ++i) preparations_.push_back(std::make_unique<Completions>());
  keeper_ = std::thread([this] { Keep(); });
}

ResidencyManager::~ResidencyManager() {
  {
    const absl::MutexLock lock(&mutex_);
    stopping_ = true;
    sooner_.Ring();
  }
  keeper_.join();
}

void ResidencyManager::Keep() {
  for (;;) {
    bool ticks = false;
    std::vector<absl::AnyInvocable<void() &&>> refusals;
    absl::Duration sleep;
    {
      const absl::MutexLock lock(&mutex_);
      if (stopping_ && refusals_.empty()) return;
      ticks = !stopping_ && next_tick_ <= clock_->Now();
      refusals = std::exchange(refusals_, {});
      sleeps_until_ = next_tick_;
      sleep = sleeps_until_ - clock_->Now();
    }
    if (!ticks && refusals.empty()) sooner_.WaitFor(sleep);
    if (ticks) Tick();  // First: those who are told may take their time.
    for (auto& refusal : refusals) std::exchange(refusal, nullptr)();
  }
}

void ResidencyManager::Tick() {
  Deferred deferred;
  {
    const absl::MutexLock lock(&mutex_);
    if (look_again_ <= clock_->Now()) {
      look_again_ = absl::InfiniteDuration();
      deferred.trimmed = std::exchange(still_read_, {});
    }
    policy_.Tick(clock_->Now(), actions_);
    ApplyLocked(deferred);
  }
  Finish(std::move(deferred));
}

ModelId ResidencyManager::AddModel(std::unique_ptr<ModelWeights> weights) {
  const absl::MutexLock lock(&mutex_);
  std::vector<int64_t> stored_bytes;
  for (ModuleIndex i = 0; i < weights->size(); ++i) stored_bytes.push_back(weights->module(i).stored_bytes);
  models_.push_back(std::move(weights));
  return policy_.AddWeights(std::move(stored_bytes));
}

absl::Status ResidencyManager::RemoveModel(ModelId model) {
  Deferred deferred;
  std::shared_ptr<const ModelWeights> removed;  // Its files are closed without the mutex.
  {
    const absl::MutexLock lock(&mutex_);
    const bool ridden =
        std::any_of(riders_.begin(), riders_.end(), [model](const RiderState& rider) { return rider.model == model; });
    if (ridden || policy_.IsLoading(model)) {
      return absl::FailedPreconditionError(
          absl::StrCat("model ", models_[static_cast<size_t>(model)]->name(),
                       " is in use: requests ride on it, or its weights are being moved"));
    }
    policy_.RemoveWeights(model, clock_->Now(), actions_);
    ApplyLocked(deferred);
    removed = std::move(models_[static_cast<size_t>(model)]);
  }
  Finish(std::move(deferred));
  return absl::OkStatus();
}

std::vector<Route> ResidencyManager::RoutesLocked(ModelId model, const Profile& profile, int device,
                                                  FormTable& forms) const {
  return MakeRoutes(*models_[static_cast<size_t>(model)], profile, *devices_[static_cast<size_t>(device)].device,
                    forms);
}

absl::StatusOr<std::unique_ptr<Rider>> ResidencyManager::Join(ModelId model, const Profile& profile,
                                                              const RideOptions& options,
                                                              absl::AnyInvocable<void(absl::Status) &&> admitted) {
  return Join(
      model, profile, absl::MakeConstSpan(&options, 1), [](absl::Span<const RideOutlook>) { return size_t{0}; },
      std::move(admitted));
}

absl::StatusOr<std::unique_ptr<Rider>> ResidencyManager::Join(
    ModelId model, const Profile& profile, absl::Span<const RideOptions> ways,
    absl::FunctionRef<size_t(absl::Span<const RideOutlook>)> choose,
    absl::AnyInvocable<void(absl::Status) &&> admitted) {
  std::unique_ptr<Rider> rider;
  Deferred deferred;
  absl::Status joined;
  {
    const absl::MutexLock lock(&mutex_);
    std::optional<Policy::JoinRequest> request;
    const size_t chosen = ways.size() > 1 ? choose(OutlooksLocked(model, profile, ways, forms_, request)) : 0;
    TakeLocked(model, profile, ways[chosen], forms_, request);
    RiderState& state = riders_.emplace_back();
    state.manager = this;
    state.model = model;
    state.profile = profile;
    state.device = ways[chosen].device;
    state.admitted = std::move(admitted);
    state.joined = clock_->Now();
    joined = JoinLocked(state, *std::move(request));
    if (joined.ok()) {
      rider.reset(new Rider(this, &state));
      ApplyLocked(deferred);
    } else {
      riders_.pop_back();
    }
  }
  Finish(std::move(deferred));
  if (!joined.ok()) return joined;
  return rider;
}

std::vector<FormId> ResidencyManager::FormsOf(ModelId model, const Profile& profile, int device,
                                              absl::Span<const ModuleIndex> modules) {
  const absl::MutexLock lock(&mutex_);
  const std::vector<Route> routes = RoutesLocked(model, profile, device, forms_);
  std::vector<FormId> forms;
  for (const ModuleIndex module : modules) forms.push_back(routes[static_cast<size_t>(module)].compute);
  return forms;
}

Policy::JoinRequest ResidencyManager::RequestLocked(ModelId model, const Profile& profile, const RideOptions& options,
                                                    FormTable& forms) const {
  Policy::JoinRequest request;
  request.weights = model;
  request.device = DeviceMemory(options.device);
  request.routes = RoutesLocked(model, profile, options.device, forms);
  for (const ModuleIndex module : options.skips) request.routes[static_cast<size_t>(module)] = Route();
  request.limit_bytes = profile.vram_limit_bytes;
  request.activation_bytes = ActivationBytesIn(options);
  request.host_bytes = options.host_bytes;
  request.priority = options.priority;
  request.join = options.join;
  return request;
}

void ResidencyManager::TakeLocked(ModelId model, const Profile& profile, const RideOptions& way, FormTable& forms,
                                  std::optional<Policy::JoinRequest>& request) const {
  const Device& device = *devices_[static_cast<size_t>(way.device)].device;
  if (request && Skips(*request, way.skips) &&
      HaveEqualRoutes(*devices_[static_cast<size_t>(DeviceOf(request->device))].device, device)) {
    request->device = DeviceMemory(way.device);
    request->activation_bytes = ActivationBytesIn(way);
    request->host_bytes = way.host_bytes;
  } else {
    request = RequestLocked(model, profile, way, forms);
  }
}

std::vector<RideOutlook> ResidencyManager::OutlooksLocked(ModelId model, const Profile& profile,
                                                          absl::Span<const RideOptions> ways, FormTable& forms,
                                                          std::optional<Policy::JoinRequest>& request) const {
  std::vector<RideOutlook> outlooks;
  for (const RideOptions& way : ways) {
    TakeLocked(model, profile, way, forms, request);
    outlooks.push_back(policy_.Outlook(*request));
  }
  return outlooks;
}

// The rider is known before what its joining leads to is applied.
absl::Status ResidencyManager::JoinLocked(RiderState& state, Policy::JoinRequest request) {
  DITSERVE_ASSIGN_OR_RETURN(state.policy, policy_.Join(std::move(request), state.joined, actions_));
  states_[state.policy] = &state;
  return absl::OkStatus();
}

absl::Status ResidencyManager::CheckBudget(Memory memory, int64_t bytes) const {
  const int64_t least = least_bytes(memory);
  if (bytes >= least) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("a budget of ", bytes, " bytes is less than the ", least,
                                                    " bytes that the server always needs of this memory"));
}

absl::Status ResidencyManager::SetBudget(Memory memory, int64_t bytes) {
  DITSERVE_RETURN_IF_ERROR(CheckBudget(memory, bytes));
  Deferred deferred;
  {
    const absl::MutexLock lock(&mutex_);
    policy_.SetBudget(memory, bytes, clock_->Now(), actions_);
    ApplyLocked(deferred);
  }
  Finish(std::move(deferred));
  return absl::OkStatus();
}

void ResidencyManager::SetPressure(Memory memory, int64_t bytes) {
  Deferred deferred;
  {
    const absl::MutexLock lock(&mutex_);
    policy_.SetPressure(memory, bytes, clock_->Now(), actions_);
    ApplyLocked(deferred);
  }
  Finish(std::move(deferred));
}

bool ResidencyManager::Loading() const {
  const absl::MutexLock lock(&mutex_);
  if (policy_.loads() > 0) return true;
  for (size_t i = 0; i < arenas_.size(); ++i) {
    if (policy_.budget(static_cast<Memory>(i)).leaving_bytes > 0) return true;
  }
  return false;
}

absl::Status ResidencyManager::Check() const {
  const absl::MutexLock lock(&mutex_);
  DITSERVE_RETURN_IF_ERROR(policy_.Check());
  for (size_t i = 0; i < arenas_.size(); ++i) {
    const auto memory = static_cast<Memory>(i);
    const MemoryBudget& budget = policy_.budget(memory);
    const MemoryUsage usage = ledger_->Usage(memory);
    const bool has_activations = !IsHost(memory) && !devices_[i - 1].device->computes_in_host_memory();
    const int64_t held = fixed_bytes_[i] + budget.copy_bytes + budget.cached_bytes + budget.leaving_bytes +
                         (has_activations ? budget.activation_bytes : 0);
    if (usage.total_bytes() != budget.used_bytes() || usage.weights_bytes != budget.copy_bytes ||
        arenas_[i]->committed_bytes() != held) {
      return absl::InternalError(absl::StrCat("memory ", i, ": the policy has ", budget.used_bytes(), " bytes, ",
                                              budget.copy_bytes, " of copies, ", held, " of the arena; the ledger ",
                                              usage.total_bytes(), " and ", usage.weights_bytes, "; the arena ",
                                              arenas_[i]->committed_bytes()));
    }
  }
  return absl::OkStatus();
}

int64_t ResidencyManager::ActivationBytesIn(const RideOptions& options) const {
  const bool in_arena = !devices_[static_cast<size_t>(options.device)].device->computes_in_host_memory();
  return in_arena ? arenas_[Index(DeviceMemory(options.device))]->RoundUp(options.activation_bytes)
                  : options.activation_bytes;
}

MemoryInfo ResidencyManager::InfoLocked(Memory memory) const {
  MemoryInfo info = {ledger_->Usage(memory), policy_.evictions(memory)};
  info.usage.wanted_bytes = policy_.budget(memory).configured_bytes;
  return info;
}

ResidencySnapshot ResidencyManager::Snapshot() const {
  ResidencySnapshot snapshot;
  const absl::MutexLock lock(&mutex_);
  const absl::Duration now = clock_->Now();
  snapshot.time = now;
  snapshot.host = InfoLocked(Memory::kHost);
  snapshot.transfers.push_back({Tier::kDisk, Tier::kHost});
  for (size_t i = 0; i < devices_.size(); ++i) {
    const auto at = static_cast<int>(i);
    DeviceInfo& device = snapshot.devices.emplace_back();
    device.name = devices_[i].device->name();
    device.memory = InfoLocked(DeviceMemory(at));
    device.predicted_wait = policy_.PredictedWait(DeviceMemory(at));
    device.modules_computed = computed_[i];
    snapshot.transfers.front().bytes += moved_[i].disk_read_bytes;
    snapshot.transfers.push_back({Tier::kHost, Tier::kDevice, moved_[i].device_copy_bytes, at});
  }
  for (size_t m = 0; m < models_.size(); ++m) {
    if (models_[m] == nullptr) continue;
    TierBytes bytes{models_[m]->name()};
    bytes.disk_bytes = models_[m]->unread_bytes();
    for (ModuleIndex i = 0; i < models_[m]->size(); ++i) {
      Tier nearest = Tier::kDisk;
      for (const Copy* copy : policy_.copies().Of(static_cast<WeightsId>(m), i)) {
        if (copy->ready()) nearest = std::max(nearest, IsHost(copy->key.memory) ? Tier::kHost : Tier::kDevice);
      }
      const int64_t stored = models_[m]->module(i).stored_bytes;
      (nearest == Tier::kDevice ? bytes.device_bytes
       : nearest == Tier::kHost ? bytes.host_bytes
                                : bytes.disk_bytes) += stored;
    }
    snapshot.models.push_back(std::move(bytes));
  }
  for (const RiderState& state : riders_) {
    if (!state.policy->admitted) {
      ++snapshot.devices[static_cast<size_t>(state.device)].waiting;
      continue;
    }
    if (!state.policy->takes_place()) continue;  // The lap before it is told.
    RiderInfo& rider = snapshot.riders.emplace_back();
    rider.model = models_[static_cast<size_t>(state.model)]->name();
    rider.profile = state.profile.name;
    rider.device = state.device;
    rider.modules_done = state.account.modules_done;
    rider.modules_total = state.policy->itinerary->modules_taken();
    rider.priority = state.policy->priority;
    rider.waiting = state.policy->after != nullptr;
    rider.stall = state.account.stall;
    if (state.acquisition != nullptr) rider.stall += now - state.acquired;
  }
  return snapshot;
}

std::vector<std::vector<Tier>> ResidencyManager::ModuleTiers(ModelId model) const {
  const absl::MutexLock lock(&mutex_);
  std::vector<std::vector<Tier>> tiers(static_cast<size_t>(policy_.copies().modules(model)));
  for (size_t i = 0; i < tiers.size(); ++i) {
    for (const Tier tier : {Tier::kDevice, Tier::kHost}) {
      const auto& held = policy_.copies().Of(model, static_cast<ModuleIndex>(i));
      if (std::any_of(held.begin(), held.end(), [&](const Copy* copy) {
            return copy->ready() && IsHost(copy->key.memory) == (tier == Tier::kHost);
          })) {
        tiers[i].push_back(tier);
      }
    }
    tiers[i].push_back(Tier::kDisk);
  }
  return tiers;
}

}  // namespace ditserve
