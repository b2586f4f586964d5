#include "server/engine/pass_modulation.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <bit>
#include <utility>

namespace ditserve {

PassModulation::PassModulation(ModulationCache* cache, ModulationKey like, std::vector<float> timesteps,
                               size_t of_first)
    : cache_(cache),
      like_(std::move(like)),
      timesteps_(std::move(timesteps)),
      of_first_(of_first),
      made_(timesteps_.size()) {
  for (const float timestep : timesteps_) rows_.push_back(cache_->Find(KeyOf(timestep)));
  known_ = std::all_of(rows_.begin(), rows_.end(), [](const auto& row) { return row != nullptr; });
}

PassModulation::~PassModulation() {
  if (published_) return;
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (made_[i]) cache_->Abandon(rows_[i]);
  }
}

Modulation PassModulation::Begin(int64_t elements, const at::TensorOptions& options) {
  cache_->CountPass(known_);
  elements_ = elements;
  options_ = options;
  const auto bytes = elements * static_cast<int64_t>(options.dtype().itemsize());
  Modulation given;
  given.known = known_;
  for (size_t i = 0; i < rows_.size(); ++i) {
    const bool was_there = rows_[i] != nullptr;
    if (!was_there) {
      rows_[i] = cache_->Add(KeyOf(timesteps_[i]), bytes);
      made_[i] = rows_[i] != nullptr;
    }
    if (i >= of_first_ && !made_[i]) continue;
    given.timesteps.push_back(timesteps_[i]);
    // What is there is read by others: where the pass makes it all the same, it keeps that apart.
    given.rows.push_back(known_ || made_[i] ? RowOf(i) : at::Tensor());
  }
  return given;
}

bool PassModulation::Keeps(float timestep) {
  ModulationCache::RowPtr& row = rows_[IndexOf(timestep)];
  if (row == nullptr) row = cache_->Find(KeyOf(timestep));
  return row != nullptr;
}

void PassModulation::Publish() {
  published_ = true;
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (made_[i]) cache_->Publish(rows_[i]);
  }
}

Modulation PassModulation::Later(float timestep) {
  const size_t index = IndexOf(timestep);
  const bool known = rows_[index] != nullptr;
  cache_->CountPass(known);
  return {{timestep}, {RowOf(index)}, known};
}

ModulationKey PassModulation::KeyOf(float timestep) const {
  ModulationKey key = like_;
  key.timestep = std::bit_cast<uint32_t>(timestep);
  return key;
}

size_t PassModulation::IndexOf(float timestep) const {
  const auto is_it = [timestep](float each) {
    return std::bit_cast<uint32_t>(each) == std::bit_cast<uint32_t>(timestep);
  };
  return static_cast<size_t>(std::find_if(timesteps_.begin(), timesteps_.end(), is_it) - timesteps_.begin());
}

at::Tensor PassModulation::RowOf(size_t index) const {
  const ModulationCache::RowPtr& row = rows_[index];
  return row == nullptr ? at::Tensor() : at::from_blob(row->data(), {elements_}, options_);
}

}  // namespace ditserve
