// The ResidencyManager carries out actions, and tells the policy what became of them.
#include <algorithm>
#include <cassert>
#include <iterator>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "core/residency/residency_manager.h"

namespace ditserve {
namespace {

// How soon memory is looked at again that operations still read, and that is to go back to the system.
constexpr absl::Duration kLookAgain = absl::Milliseconds(1);

}  // namespace

void ResidencyManager::ApplyLocked(Deferred& deferred) {
  SettleBudgetsLocked();
  for (Action& action : actions_) {
    if (auto* grant = std::get_if<Grant>(&action)) {
      GrantLocked(StateOf(grant->rider), std::move(grant->pin), deferred);
    } else if (const auto* load = std::get_if<StartLoad>(&action)) {
      StartLocked(*load, deferred);
    } else if (const auto* drop = std::get_if<DropCopy>(&action)) {
      Holding& gone = *holdings_[static_cast<size_t>(drop->id)];
      Reservation& cached = cached_[Index(gone.reservation.memory())];
      gone.buffer = Buffer();
      gone.reservation.SetKind(MemoryKind::kStaging);
      cached.Merge(std::move(gone.reservation));
      gone.tensors.clear();
    } else if (const auto* trim = std::get_if<TrimCache>(&action)) {
      deferred.trimmed.push_back({arenas_[Index(trim->memory)]->Trim(trim->bytes),
                                  cached_[Index(trim->memory)].Split(trim->bytes), trim->memory});
    } else if (const auto* admit = std::get_if<Admit>(&action)) {
      AdmitLocked(*admit);
    } else if (const auto* begin = std::get_if<Begin>(&action)) {
      BeginLocked(StateOf(begin->rider), deferred);
    } else {
      const End& end = std::get<End>(action);
      EndLocked(StateOf(end.rider), end.why, deferred);
    }
  }
  actions_.clear();
  next_tick_ = policy_.NextTick();
  next_tick_ = std::min(next_tick_, look_again_);
  if (next_tick_ < sleeps_until_) sooner_.Ring();
}

// The ledger keeps to what the policy has in force, whatever is booked.
void ResidencyManager::SettleBudgetsLocked() {
  for (size_t i = 0; i < force_bytes_.size(); ++i) {
    const auto memory = static_cast<Memory>(i);
    const int64_t force = policy_.budget(memory).force_bytes();
    if (force == force_bytes_[i]) continue;
    force_bytes_[i] = force;
    ledger_->SetBudget(memory, force);
  }
}

void ResidencyManager::HoldLocked(const Copy& copy) {
  const size_t at = Index(copy.key.memory);
  if (holdings_.size() <= static_cast<size_t>(copy.id)) holdings_.resize(static_cast<size_t>(copy.id) + 1);
  std::unique_ptr<Holding>& holding = holdings_[static_cast<size_t>(copy.id)];
  if (holding == nullptr) holding = std::make_unique<Holding>();
  holding->reservation = cached_[at].Split(copy.bytes - copy.grown_bytes);
  holding->reservation.SetKind(MemoryKind::kWeights);
  std::optional<Reservation> grown = ledger_->TryReserve(copy.key.memory, MemoryKind::kWeights, copy.grown_bytes);
  assert(grown.has_value());  // The policy keeps to what is in force.
  holding->reservation.Merge(*std::move(grown));
  holding->buffer = arenas_[at]->Take(copy.bytes, copy.bytes - copy.grown_bytes);
  const CopyForm& form = forms_.form(copy.key.form);
  const ModelWeights::Module& module = models_[static_cast<size_t>(copy.key.weights)]->module(copy.key.module);
  const Device& device = *devices_[IsHost(copy.key.memory) ? 0 : static_cast<size_t>(DeviceOf(copy.key.memory))].device;
  const CopyLayout layout = LayoutOf(module, form, device.IsInHostMemory(copy.key.memory));
  holding->tensors.clear();
  for (size_t i = 0; i < layout.places.size(); ++i) {
    holding->tensors.push_back({holding->buffer.data() + layout.places[i].offset_bytes, form.encodings[i].dtype});
  }
}

void ResidencyManager::StartLocked(const StartLoad& load, Deferred& deferred) {
  Transfer transfer;
  transfer.device = devices_[static_cast<size_t>(DeviceOf(load.device))].device;
  transfer.model = models_[static_cast<size_t>(load.weights)].get();
  transfer.module = load.module;
  const auto buffer = [this](const Copy& copy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return &holdings_[static_cast<size_t>(copy.id)]->buffer;
  };
  if (load.source != nullptr) transfer.source = {buffer(*load.source), &forms_.form(load.source->key.form)};
  for (const Copy* target : load.targets) {
    HoldLocked(*target);
    transfer.targets.push_back({buffer(*target), &forms_.form(target->key.form), target->grown_bytes});
  }
  const int device = DeviceOf(load.device);
  transfer.enqueued = [this, id = load.load, device, targets = load.targets](absl::Status status, TransferCost cost) {
    OnEnqueued(id, device, targets, std::move(status), cost);
  };
  transfer.done = [this, id = load.load, device, targets = load.targets](const absl::Status& status) {
    OnDone(id, device, targets, status);
  };
  deferred.transfers.push_back(std::move(transfer));
}

void ResidencyManager::AdmitLocked(const Admit& admit) {
  RiderState& rider = StateOf(admit.rider);
  const Memory memory = DeviceMemory(rider.device);
  const int64_t bytes = rider.policy->activation_bytes, reused_bytes = bytes - admit.grown_bytes;
  rider.activations = cached_[Index(memory)].Split(reused_bytes);
  rider.activations.SetKind(MemoryKind::kActivations);
  std::optional<Reservation> grown = ledger_->TryReserve(memory, MemoryKind::kActivations, admit.grown_bytes);
  assert(grown.has_value());  // As above.
  rider.activations.Merge(*std::move(grown));
  rider.on_host = *ledger_->TryReserve(Memory::kHost, MemoryKind::kActivations, rider.policy->host_bytes);  // Likewise.
  if (!devices_[static_cast<size_t>(rider.device)].device->computes_in_host_memory()) {
    rider.memory = arenas_[Index(memory)]->Take(bytes, reused_bytes);
  }
  rider.watermark = ledger_->BeginWatermark(memory);
}

void ResidencyManager::BeginLocked(RiderState& rider, Deferred& deferred) {
  rider.account.queue = clock_->Now() - rider.joined;
  rider.account.join = rider.policy->join_costs;
  rider.account.waited_for_sweep = rider.policy->waited_for_sweep;
  const auto rides = [&rider](const RiderState& other) {
    return other.model == rider.model && other.policy->riding() && !other.policy->passed_all();
  };
  const auto riders = static_cast<int>(std::count_if(riders_.begin(), riders_.end(), rides));
  for (RiderState& other : riders_) {
    if (rides(other)) other.account.most_riders = std::max(other.account.most_riders, riders);
  }
  if (rider.memory.has_memory()) {
    deferred.posts.push_back(AdmissionOf(rider, absl::OkStatus()));
  } else {
    rider.preparing = true;
    deferred.preparations.push_back(&rider);
  }
}

ResidencyManager::Post ResidencyManager::AdmissionOf(RiderState& rider, absl::Status status) {
  return {devices_[static_cast<size_t>(rider.device)].executor,
          [admitted = std::exchange(rider.admitted, nullptr), status = std::move(status)]() mutable {
            std::move(admitted)(std::move(status));
          },
          TurnOf(rider)};
}

void ResidencyManager::Prepare(RiderState* rider) {
  absl::Status prepared = rider->memory.Prepare();
  if (absl::IsResourceExhausted(prepared)) {
    prepared = absl::ResourceExhaustedError(
        absl::StrCat("the device has no memory left for activations: ", prepared.message()));
  }
  Deferred deferred;
  {
    const absl::MutexLock lock(&mutex_);
    rider->preparing = false;
    if (absl::IsResourceExhausted(prepared) && rider->policy->ended.ok()) {
      RefuseLocked(*rider, prepared);
    } else {
      const absl::Status& ended = rider->policy->ended;  // Why it goes, whatever became of its memory.
      deferred.posts.push_back(AdmissionOf(*rider, ended.ok() ? std::move(prepared) : ended));
    }
    ApplyLocked(deferred);
  }
  Finish(std::move(deferred));
}

void ResidencyManager::RefuseLocked(RiderState& rider, const absl::Status& why) {
  ledger_->EndWatermark(*std::exchange(rider.watermark, std::nullopt));
  const int64_t lost_bytes = GiveBackLocked(rider, nullptr);
  policy_.Refused(*rider.policy, lost_bytes, why, clock_->Now(), actions_);
}

void ResidencyManager::GrantLocked(RiderState& rider, Pin pin, Deferred& deferred) {
  rider.account.stall += clock_->Now() - rider.acquired;
  const ComputingDevice& on = devices_[static_cast<size_t>(rider.device)];
  const EventPtr ready = holdings_[static_cast<size_t>(pin.copy()->id)]->buffer.ready();
  Executor::Work grant = [done = std::exchange(rider.acquisition, nullptr), device = on.device, ready,
                          lease = MakeLease(rider, std::move(pin))]() mutable {
    const absl::Status ordered = device->ComputeAfter(ready);
    if (ordered.ok()) return std::move(done)(std::move(lease));
    { const Lease unused = std::move(lease); }  // Whoever is told may destroy the rider.
    std::move(done)(ordered);
  };
  deferred.posts.push_back({on.executor, std::move(grant), TurnOf(rider)});
}

void ResidencyManager::EndLocked(RiderState& rider, const absl::Status& why, Deferred& deferred) {
  if (rider.admitted != nullptr) {
    Executor::Work refuse = [admitted = std::exchange(rider.admitted, nullptr), why]() mutable {
      std::move(admitted)(why);
    };
    // A request is told at once; a lap by the executor, which is at the lap before it.
    if (rider.policy->is_lap) {
      deferred.posts.push_back({devices_[static_cast<size_t>(rider.device)].executor, std::move(refuse), std::nullopt});
      return;
    }
    refusals_.push_back(std::move(refuse));
    sooner_.Ring();
  } else if (rider.acquisition != nullptr) {
    rider.account.stall += clock_->Now() - rider.acquired;
    paces_[static_cast<size_t>(rider.device)].Drop();
    Executor::Work end = [done = std::exchange(rider.acquisition, nullptr), why]() mutable { std::move(done)(why); };
    deferred.posts.push_back({devices_[static_cast<size_t>(rider.device)].executor, std::move(end), std::nullopt});
  }
}

void ResidencyManager::Finish(Deferred deferred) {
  for (;;) {
    for (RiderState* rider : deferred.preparations) {
      const auto device = static_cast<size_t>(rider->device);
      preparations_[device]->When({}, [this, rider](const absl::Status&) { Prepare(rider); });
    }
    for (Transfer& transfer : deferred.transfers) transfers_->Submit(std::move(transfer));
    for (Post& post : deferred.posts) {
      post.turn ? post.executor->Post(std::move(post.work), *post.turn) : post.executor->Post(std::move(post.work));
    }
    if (deferred.trimmed.empty()) return;
    std::vector<Trimmed> trimmed = std::move(deferred.trimmed);
    deferred = {};
    const auto still_read =
        std::stable_partition(trimmed.begin(), trimmed.end(), [](const Trimmed& each) { return each.garbage.Ready(); });
    for (auto each = trimmed.begin(); each != still_read; ++each) each->garbage.Free();
    const absl::MutexLock lock(&mutex_);
    for (auto each = trimmed.begin(); each != still_read; ++each) {
      const int64_t bytes = each->reservation.bytes();
      { const Reservation freed = std::move(each->reservation); }
      policy_.Freed(each->memory, bytes, clock_->Now(), actions_);
    }
    // However often something else happens meanwhile.
    if (still_read != trimmed.end()) look_again_ = std::min(look_again_, clock_->Now() + kLookAgain);
    std::move(still_read, trimmed.end(), std::back_inserter(still_read_));
    ApplyLocked(deferred);
  }
}

void ResidencyManager::OnEnqueued(LoadId load, int device, const std::vector<Copy*>& targets, absl::Status status,
                                  TransferCost cost) {
  Deferred deferred;
  {
    const absl::MutexLock lock(&mutex_);
    if (!status.ok()) {
      failed_[load] = std::move(status);  // Until nothing is under way any more.
      return;
    }
    ArrivedLocked(device, targets, cost);
    policy_.Enqueued(load, clock_->Now(), actions_);
    ApplyLocked(deferred);
  }
  Finish(std::move(deferred));
}

void ResidencyManager::OnDone(LoadId load, int device, const std::vector<Copy*>& targets, const absl::Status& status) {
  Deferred deferred;
  {
    const absl::MutexLock lock(&mutex_);
    const absl::Duration now = clock_->Now();
    if (auto failed = failed_.extract(load)) {
      FailedLocked(load, targets, failed.mapped());
    } else {
      policy_.Finished(load, now, actions_);
      // What was enqueued and then failed is the device's failure: nobody on it can trust what they were given.
      for (RiderState& rider : riders_) {
        if (!status.ok() && rider.device == device) policy_.Cancel(*rider.policy, status, now, actions_);
      }
    }
    ApplyLocked(deferred);
  }
  Finish(std::move(deferred));
}

void ResidencyManager::ArrivedLocked(int device, const std::vector<Copy*>& targets, const TransferCost& cost) {
  const CopyKey& key = targets.back()->key;
  std::vector<RiderState*> users;
  policy_.ForEachUser(
      key, [&](PolicyRider& rider) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { users.push_back(&StateOf(&rider)); });
  for (RiderState* user : users) {
    user->account.disk_read_bytes += cost.disk_read_bytes / static_cast<int64_t>(users.size());
    user->account.device_copy_bytes += cost.device_copy_bytes / static_cast<int64_t>(users.size());
  }
  TransferCost& moved = moved_[static_cast<size_t>(device)];
  moved.disk_read_bytes += cost.disk_read_bytes;
  moved.device_copy_bytes += cost.device_copy_bytes;
}

void ResidencyManager::FailedLocked(LoadId load, const std::vector<Copy*>& targets, const absl::Status& why) {
  std::vector<int64_t> lost_bytes(arenas_.size());
  std::optional<Memory> refused;
  for (const Copy* target : targets) {
    Holding& holding = *holdings_[static_cast<size_t>(target->id)];
    if (holding.buffer.has_memory()) continue;
    if (!refused) refused = target->key.memory;
    const int64_t lost = holding.buffer.lost_bytes();
    lost_bytes[Index(target->key.memory)] += lost;
    const Reservation gone = holding.reservation.Split(lost);
  }
  if (refused) {
    policy_.Refused(load, *refused, lost_bytes, why, clock_->Now(), actions_);
  } else {
    policy_.Failed(load, why, clock_->Now(), actions_);
  }
}

}  // namespace ditserve
