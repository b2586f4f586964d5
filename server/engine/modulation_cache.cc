#include "server/engine/modulation_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ditserve {

absl::StatusOr<std::unique_ptr<ModulationCache>> ModulationCache::Make(Device* device, Arena* arena, Ledger* ledger,
                                                                       int64_t bytes) {
  bytes = arena->RoundUp(bytes);
  std::optional<Reservation> reserved = ledger->TryReserve(device->memory(), MemoryKind::kModulation, bytes);
  if (!reserved) {
    return absl::ResourceExhaustedError(absl::StrCat("the budget of ", device->name(), " is ",
                                                     ledger->Usage(device->memory()).budget_bytes,
                                                     " bytes; to keep modulation takes ", bytes));
  }
  Buffer buffer;
  if (bytes > 0) {
    buffer = arena->Take(bytes);
    DITSERVE_RETURN_IF_ERROR(buffer.Prepare());
  }
  return std::unique_ptr<ModulationCache>(new ModulationCache(device, *std::move(reserved), std::move(buffer), bytes));
}

ModulationCache::ModulationCache(Device* device, Reservation reservation, Buffer buffer, int64_t bytes)
    : device_(device), reservation_(std::move(reservation)), buffer_(std::move(buffer)), region_(bytes) {}

ModulationCache::~ModulationCache() {
  if (buffer_.size_bytes() == 0) return;
  // After an error the device is lost, or its operations are finished.
  const absl::StatusOr<EventPtr> operations = device_->RecordOperations();
  if (operations.ok()) buffer_.InUseUntil(*operations);
}

ModulationCache::RowPtr ModulationCache::Find(const ModulationKey& key) {
  const absl::MutexLock lock(&mutex_);
  const auto found = rows_.find(key);
  if (found == rows_.end() || !found->second->known_) return nullptr;
  found->second->used_ = ++uses_;
  return found->second;
}

ModulationCache::RowPtr ModulationCache::Add(const ModulationKey& key, int64_t bytes) {
  const absl::MutexLock lock(&mutex_);
  if (bytes > buffer_.size_bytes() || rows_.contains(key)) return nullptr;
  const std::optional<int64_t> offset = TakeRoom(bytes);
  if (!offset) return nullptr;
  auto row = std::make_shared<Row>();
  row->data_ = buffer_.data() + *offset;
  row->offset_bytes_ = *offset;
  row->used_ = ++uses_;
  rows_[key] = row;
  return row;
}

void ModulationCache::Publish(const RowPtr& row) {
  const absl::MutexLock lock(&mutex_);
  row->known_ = true;
}

void ModulationCache::Abandon(const RowPtr& row) {
  const absl::MutexLock lock(&mutex_);
  region_.Give(row->offset_bytes_);
  std::erase_if(rows_, [&row](const auto& each) { return each.second == row; });
}

void ModulationCache::CountPass(bool reads) {
  const absl::MutexLock lock(&mutex_);
  ++(reads ? hits_ : misses_);
}

ModulationInfo ModulationCache::Info() const {
  const absl::MutexLock lock(&mutex_);
  return {static_cast<int64_t>(rows_.size()), region_.used_bytes(), hits_, misses_, evictions_};
}

// Rows of float32 and of bfloat16 lie side by side: what is held between them may leave no hole that is large enough.
std::optional<int64_t> ModulationCache::TakeRoom(int64_t bytes) {
  std::vector<Rows::iterator> may_go;
  for (auto row = rows_.begin(); row != rows_.end(); ++row) {
    const bool is_held = row->second.use_count() > 1;
    if (!is_held && row->second->known_) may_go.push_back(row);
  }
  std::sort(may_go.begin(), may_go.end(),
            [](const auto& a, const auto& b) { return a->second->used_ < b->second->used_; });
  Region without = region_;
  std::optional<int64_t> offset = without.Take(bytes);
  size_t gone = 0;
  for (; !offset && gone < may_go.size(); ++gone) {
    without.Give(may_go[gone]->second->offset_bytes_);
    offset = without.Take(bytes);
  }
  if (!offset) return std::nullopt;
  for (size_t i = 0; i < gone; ++i) rows_.erase(may_go[i]);
  evictions_ += static_cast<int64_t>(gone);
  region_ = std::move(without);
  return offset;
}

}  // namespace ditserve
