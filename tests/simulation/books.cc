#include "tests/simulation/books.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace ditserve::simulation {

Books::Books(const Scenario& scenario, const Policy& policy)
    : scenario_(scenario), policy_(policy), accounts_(scenario.budget_bytes.size()) {
  for (size_t i = 0; i < accounts_.size(); ++i) accounts_[i].before = accounts_[i].booked = scenario.fixed_bytes[i];
}

bool Books::Leads(FormId from, FormId to) const {
  for (int form = to; form >= 0; form = scenario_.parents[static_cast<size_t>(form)]) {
    if (form == from) return true;
  }
  return false;
}

// Each target is made from the one before it, never a host's copy from a device's, and the last one can be read.
absl::Status Books::CheckChain(const StartLoad& load) const {
  const Copy* from = load.source;
  if (from != nullptr && !IsHost(from->key.memory) && from->key.memory != load.device) {
    return absl::InternalError("a load for one device reads from another");
  }
  for (const Copy* target : load.targets) {
    if (target == load.source) return absl::InternalError("a copy is made from itself");
    if (from != nullptr && !Leads(from->key.form, target->key.form)) {
      return absl::InternalError(absl::StrCat("form ", target->key.form, " is made from form ", from->key.form,
                                              ", which does not lead to it"));
    }
    if (from != nullptr && IsHost(target->key.memory) && !IsHost(from->key.memory)) {
      return absl::InternalError("a copy in host memory is made from one on a device");
    }
    if (!IsHost(target->key.memory) && target->key.memory != load.device) {
      return absl::InternalError("a load for one device writes to another");
    }
    from = target;
  }
  return absl::OkStatus();
}

// What is on its way, and can be made into what this load makes, is waited for.
absl::Status Books::CheckReadOnce(const StartLoad& load) const {
  if (load.source != nullptr) return absl::OkStatus();
  for (const Copy* other : policy_.copies().Of(load.weights, load.module)) {
    const auto found = copies_.find(other->id);
    if (found == copies_.end() || !found->second.written || other->doomed) continue;
    if (doomed_.contains(other->id) || doomed_on_host_.contains(other->id)) continue;
    if (!IsHost(other->key.memory) && other->key.memory != load.device) continue;
    if (std::find(load.targets.begin(), load.targets.end(), other) != load.targets.end()) continue;
    if (Leads(other->key.form, load.targets.back()->key.form)) {
      return absl::InternalError(absl::StrCat("module ", load.module, " is read twice at once"));
    }
  }
  return absl::OkStatus();
}

// A copy is placed where a rider computes with it, or where its profile has a stop: a limited one within its limit.
absl::Status Books::CheckPlaced(const StartLoad& load, const std::vector<const PolicyRider*>& riders) const {
  for (const Copy* target : load.targets) {
    const Account& account = accounts_[Index(target->key.memory)];
    const bool placed = std::any_of(riders.begin(), riders.end(), [&](const PolicyRider* rider) {
      const Itinerary& itinerary = *rider->itinerary;
      if (itinerary.device != load.device) return false;
      if (target == load.targets.back() && itinerary.Computes(target->key)) return true;
      const int stop = itinerary.StopOf(target->key);
      const bool limited = stop >= 0 && stop == itinerary.route(load.module).limited && itinerary.limit_bytes;
      return stop >= 0 && (!limited || account.copies + account.activations <= *itinerary.limit_bytes);
    });
    if (!placed) {
      return absl::InternalError(absl::StrCat("module ", load.module, " is placed in memory ",
                                              Index(target->key.memory), " in form ", target->key.form,
                                              ", where no rider's profile has it"));
    }
  }
  return absl::OkStatus();
}

absl::Status Books::Start(const StartLoad& load, const std::vector<const PolicyRider*>& riders) {
  if (absl::Status status = CheckChain(load); !status.ok()) return status;
  if (absl::Status status = CheckReadOnce(load); !status.ok()) return status;
  for (const Copy* target : load.targets) {
    if (!keys_.insert(KeyOf(target->key)).second) return absl::InternalError("what is there is loaded again");
    Account& account = accounts_[Index(target->key.memory)];
    const int64_t reused = target->bytes - target->grown_bytes;
    if (reused > account.cached) return absl::InternalError("more is used again than the cache has");
    account.cached -= reused;
    account.copies += target->bytes;
    account.booked += target->grown_bytes;
    copies_[target->id] = {target->key, target->bytes, 0, true, load.load};
    moved_bytes_ += target->bytes;
  }
  if (absl::Status status = CheckPlaced(load, riders); !status.ok()) return status;
  if (load.source == nullptr) return absl::OkStatus();
  const auto source = copies_.find(load.source->id);
  if (source == copies_.end() || !load.source->ready()) return absl::InternalError("the source is not there");
  if (const auto doomed = doomed_.find(load.source->id);
      doomed != doomed_.end() && load.source->doomed &&
      policy_.elder_turns(load.source->key.memory) == doomed->second) {
    return absl::InternalError("what goes for another is read once more");
  }
  ++source->second.readers;
  return absl::OkStatus();
}

absl::Status Books::Drop(int id) {
  const auto found = copies_.find(id);
  if (found == copies_.end()) return absl::InternalError("what is not there is dropped");
  const Held& copy = found->second;
  if (copy.readers != 0) return absl::InternalError(absl::StrCat("copy ", id, " goes while it is read"));
  const bool taken_back = taken_back_.erase(id) > 0;
  if (copy.written && !taken_back) return absl::InternalError("a copy goes while it is written");
  if (const auto promised = promised_.find(id); promised != promised_.end() && !taken_back) {
    for (const RiderId rider : promised->second) {
      if (!settled_.contains(rider)) {
        return absl::InternalError(absl::StrCat("copy ", id, " goes, which is promised to rider ", rider));
      }
    }
  }
  Account& account = accounts_[Index(copy.key.memory)];
  account.copies -= copy.bytes;
  account.cached += taken_back ? 0 : copy.bytes;
  keys_.erase(KeyOf(copy.key));
  promised_.erase(id);
  doomed_.erase(id);
  copies_.erase(found);
  return absl::OkStatus();
}

absl::Status Books::Trim(Memory memory, int64_t bytes) {
  Account& account = accounts_[Index(memory)];
  if (bytes <= 0) return absl::InternalError("nothing is given back");
  if (bytes > account.cached) return absl::InternalError("more is given back than the cache has");
  account.cached -= bytes;
  account.leaving += bytes;
  return absl::OkStatus();
}

absl::Status Books::Pinned(const PolicyRider& rider, const Copy& copy) {
  const auto found = copies_.find(copy.id);
  if (found == copies_.end() || !copy.ready() || found->second.written) {
    return absl::InternalError("a copy is granted that is not there");
  }
  if (!rider.itinerary->Computes(copy.key) || copy.key.module != rider.next) {
    return absl::InternalError("a rider is granted what it can't compute with");
  }
  ++found->second.readers;
  settled_.insert(rider.id);
  const auto doomed = doomed_.find(copy.id);
  if (doomed == doomed_.end() || !copy.doomed || IsHost(copy.key.memory) ||
      policy_.elder_turns(copy.key.memory) != doomed->second) {
    return absl::OkStatus();
  }
  const std::vector<RiderId>& promised = promised_[copy.id];
  if (std::find(promised.begin(), promised.end(), rider.id) != promised.end()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("rider ", rider.id, " is granted copy ", copy.id,
                                          ", which goes for another and is not promised to it"));
}

void Books::Enqueued(const StartLoad& load) {
  for (const Copy* target : load.targets) {
    Held& held = copies_.at(target->id);
    held.written = false;
    // Until the load is over the device reads it, to make the next target of it.
    if (!IsHost(target->key.memory) || target == load.targets.back()) continue;
    ++held.readers;
    read_[load.load].push_back(target->id);
  }
}

void Books::TakenBack(const StartLoad& load, const std::vector<int64_t>& lost_bytes) {
  for (const Copy* target : load.targets) {
    accounts_[Index(target->key.memory)].cached += target->bytes;
    taken_back_.insert(target->id);
  }
  for (size_t i = 0; i < accounts_.size(); ++i) {
    accounts_[i].cached -= lost_bytes[i];
    accounts_[i].booked -= lost_bytes[i];
  }
  Finished(load);
}

absl::Status Books::Admitted(const Admit& admit) {
  const PolicyRider& rider = *admit.rider;
  Account& account = accounts_[Index(rider.itinerary->device)];
  const int64_t reused = rider.activation_bytes - admit.grown_bytes;
  if (reused > (rider.itinerary->in_host_memory ? 0 : account.cached)) {
    return absl::InternalError("activations take more than the cache has for them");
  }
  account.cached -= reused;
  account.booked += admit.grown_bytes;
  account.activations += rider.activation_bytes;
  accounts_[Index(Memory::kHost)].booked += rider.host_bytes;
  admitted_.insert(rider.id);
  return absl::OkStatus();
}

void Books::Left(const PolicyRider& rider, int64_t lost_bytes, bool hands_over, absl::Duration now) {
  settled_.insert(rider.id);
  if (!admitted_.contains(rider.id)) return;
  if (!hands_over) return GivenUp(rider, lost_bytes, now);
  admitted_.erase(rider.id);
  NoteStops(rider, now);
}

void Books::GivenUp(const PolicyRider& rider, int64_t lost_bytes, absl::Duration now) {
  admitted_.erase(rider.id);
  const Itinerary& itinerary = *rider.itinerary;
  Account& account = accounts_[Index(itinerary.device)];
  const int64_t cached = itinerary.in_host_memory ? 0 : rider.activation_bytes - lost_bytes;
  account.cached += cached;
  account.booked -= rider.activation_bytes - cached;
  account.activations -= rider.activation_bytes;
  accounts_[Index(Memory::kHost)].booked -= rider.host_bytes;
  NoteStops(rider, now);
}

void Books::NoteStops(const PolicyRider& rider, absl::Duration now) {
  const Itinerary& itinerary = *rider.itinerary;
  for (ModuleIndex i = 0; i < itinerary.modules(); ++i) {
    const Route& route = itinerary.route(i);
    for (size_t at = 0; at < route.stops.size(); ++at) {
      const Stop& stop = route.stops[at];
      const Key key = {itinerary.weights, i, stop.form, itinerary.MemoryOf(stop.tier)};
      left_at_[key] = now;
      if (static_cast<int>(at) == route.rest && i < rider.next) rests_.insert(key);
    }
  }
}

bool Books::MayBeKept(const CopyKey& key, const std::list<PolicyRider>& riders, absl::Duration now) const {
  if (rests_.contains(KeyOf(key))) return true;
  if (const auto left = left_at_.find(KeyOf(key));
      left != left_at_.end() && now - left->second <= scenario_.options.idle_release) {
    return true;
  }
  return std::any_of(riders.begin(), riders.end(), [&](const PolicyRider& rider) {
    const bool leaves = rider.stage == PolicyRider::Stage::kEnding;  // What is there for it goes with it.
    return Sweeps::Needs(rider, key) || (leaves && rider.itinerary->Computes(key)) ||
           (rider.admitted && rider.itinerary->StopOf(key) >= 0);
  });
}

void Books::Finished(const StartLoad& load) {
  for (auto& [id, copy] : copies_) {
    if (copy.load == load.load) copy.load = 0;
  }
  if (const auto read = read_.extract(load.load)) {
    for (const int id : read.mapped()) --copies_.at(id).readers;
  }
  if (load.source != nullptr) --copies_.at(load.source->id).readers;
}

void Books::Freed(Memory memory, int64_t bytes) {
  accounts_[Index(memory)].leaving -= bytes;
  accounts_[Index(memory)].booked -= bytes;
}

absl::Status Books::Settle() {
  for (size_t i = 0; i < accounts_.size(); ++i) {
    Account& account = accounts_[i];
    const MemoryBudget& budget = policy_.budget(static_cast<Memory>(i));
    if (account.booked > budget.force_bytes() && account.booked > account.before) {
      return absl::InternalError(absl::StrCat("memory ", i, " grows to ", account.booked, " bytes beyond the ",
                                              budget.force_bytes(), " in force"));
    }
    account.before = account.booked;
  }
  return absl::OkStatus();
}

absl::Status Books::Check(const std::list<PolicyRider>& riders, absl::Duration now) const {
  for (size_t i = 0; i < accounts_.size(); ++i) {
    const MemoryBudget& budget = policy_.budget(static_cast<Memory>(i));
    const Account& account = accounts_[i];
    if (account.copies != budget.copy_bytes || account.cached != budget.cached_bytes ||
        account.leaving != budget.leaving_bytes || account.booked != budget.used_bytes()) {
      return absl::InternalError(absl::StrCat("memory ", i, ": the books differ: copies ", account.copies, " ",
                                              budget.copy_bytes, ", cached ", account.cached, " ", budget.cached_bytes,
                                              ", leaving ", account.leaving, " ", budget.leaving_bytes, ", all ",
                                              account.booked, " ", budget.used_bytes()));
    }
  }
  for (const auto& copy : policy_.copies().slots()) {
    if (copy == nullptr) continue;
    const Held& held = copies_.at(copy->id);
    const bool read = held.readers > 0;
    if (!read && held.load == 0 && copy->IsEvictable() && !MayBeKept(copy->key, riders, now)) {
      return absl::InternalError(absl::StrCat("copy ", copy->id, " stays, and no profile may keep it"));
    }
    if (read && copy->IsEvictable()) return absl::InternalError("what is read is taken for free");
    if (read || copy->IsEvictable() || !copy->ready()) continue;
    const bool promised = std::any_of(riders.begin(), riders.end(), [&](const PolicyRider& rider) {
      return rider.pending && rider.next == copy->key.module && copy->IsPromisedTo(rider.id);
    });
    if (!promised) return absl::InternalError(absl::StrCat("copy ", copy->id, " stays for nobody"));
  }
  return absl::OkStatus();
}

void Books::Note(const std::list<PolicyRider>& riders) {
  taken_back_.clear();
  settled_.clear();
  promised_.clear();
  doomed_.clear();
  doomed_on_host_.clear();
  for (const auto& copy : policy_.copies().slots()) {
    if (copy != nullptr && copy->doomed && IsHost(copy->key.memory)) doomed_on_host_.insert(copy->id);
  }
  for (const PolicyRider& rider : riders) {
    if (!rider.pending) continue;
    for (const Copy* copy : policy_.copies().Of(rider.itinerary->weights, rider.next)) {
      if (copy->IsPromisedTo(rider.id)) promised_[copy->id].push_back(rider.id);
    }
  }
  for (size_t i = 1; i < accounts_.size(); ++i) {
    const auto memory = static_cast<Memory>(i);
    if (policy_.elder(memory) == nullptr) continue;
    for (const auto& copy : policy_.copies().slots()) {
      if (copy != nullptr && copy->doomed && Index(copy->key.memory) == i)
        doomed_[copy->id] = policy_.elder_turns(memory);
    }
  }
}

}  // namespace ditserve::simulation
