#include "core/residency/policy/copy_store.h"

#include <algorithm>
#include <cassert>

namespace ditserve {

bool Copy::IsPromisedTo(RiderId rider) const {
  return std::find(promised_.begin(), promised_.end(), rider) != promised_.end();
}

WeightsId CopyStore::AddWeights(int modules) {
  by_module_.emplace_back(static_cast<size_t>(modules));
  return static_cast<WeightsId>(by_module_.size()) - 1;
}

Copy* CopyStore::Find(const CopyKey& key) const {
  for (Copy* copy : Of(key.weights, key.module)) {
    if (copy->key == key) return copy;
  }
  return nullptr;
}

Copy& CopyStore::Add(const CopyKey& key, int64_t bytes, int64_t grown_bytes) {
  assert(Find(key) == nullptr);
  if (free_slots_.empty()) {
    free_slots_.push_back(static_cast<int>(slots_.size()));
    slots_.emplace_back();
  }
  const int id = free_slots_.back();
  free_slots_.pop_back();
  std::unique_ptr<Copy>& slot = slots_[static_cast<size_t>(id)];
  slot = std::make_unique<Copy>(id, key, bytes, grown_bytes);
  by_module_[static_cast<size_t>(key.weights)][static_cast<size_t>(key.module)].push_back(slot.get());
  return *slot;
}

void CopyStore::Remove(Copy& copy) {
  assert(copy.pins_ == 0 && (copy.IsEvictable() || !copy.ready_));
  if (!copy.promised_.empty()) promised_.erase(std::find(promised_.begin(), promised_.end(), &copy));
  auto& copies = by_module_[static_cast<size_t>(copy.key.weights)][static_cast<size_t>(copy.key.module)];
  copies.erase(std::find(copies.begin(), copies.end(), &copy));
  free_slots_.push_back(copy.id);
  slots_[static_cast<size_t>(copy.id)].reset();
}

void CopyStore::Promise(Copy& copy, RiderId rider) {
  if (copy.IsPromisedTo(rider)) return;
  if (copy.promised_.empty()) promised_.push_back(&copy);
  copy.promised_.push_back(rider);
}

void CopyStore::Fulfil(Copy& copy, RiderId rider) {
  const auto found = std::find(copy.promised_.begin(), copy.promised_.end(), rider);
  if (found == copy.promised_.end()) return;
  copy.promised_.erase(found);
  if (copy.promised_.empty()) promised_.erase(std::find(promised_.begin(), promised_.end(), &copy));
}

void CopyStore::FulfilAll(RiderId rider) {
  for (size_t i = promised_.size(); i-- > 0;) Fulfil(*promised_[i], rider);
}

}  // namespace ditserve
