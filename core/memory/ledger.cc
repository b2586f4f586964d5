#include "core/memory/ledger.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace ditserve {
namespace {

int64_t& BytesOf(MemoryUsage& usage, MemoryKind kind) {
  switch (kind) {
    case MemoryKind::kStaging:
      return usage.staging_bytes;
    case MemoryKind::kActivations:
      return usage.activations_bytes;
    case MemoryKind::kRuntime:
      return usage.runtime_bytes;
    case MemoryKind::kModulation:
      return usage.modulation_bytes;
    case MemoryKind::kWeights:
      break;
  }
  return usage.weights_bytes;
}

void SettleBudget(MemoryUsage& usage) { usage.budget_bytes = std::max(usage.wanted_bytes, usage.total_bytes()); }

}  // namespace

Reservation::Reservation(Reservation&& other) noexcept
    : ledger_(std::exchange(other.ledger_, nullptr)),
      memory_(other.memory_),
      kind_(other.kind_),
      bytes_(std::exchange(other.bytes_, 0)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  std::swap(ledger_, other.ledger_);
  std::swap(memory_, other.memory_);
  std::swap(kind_, other.kind_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Reservation::~Reservation() {
  if (ledger_ != nullptr) ledger_->Release(memory_, kind_, bytes_);
}

void Reservation::SetKind(MemoryKind kind) {
  if (ledger_ != nullptr) ledger_->Rebook(memory_, kind_, kind, bytes_);
  kind_ = kind;
}

Reservation Reservation::Split(int64_t bytes) {
  assert(0 <= bytes && bytes <= bytes_);
  bytes_ -= bytes;
  return {ledger_, memory_, kind_, bytes};
}

void Reservation::Merge(Reservation other) {
  assert(memory_ == other.memory_ && kind_ == other.kind_);
  bytes_ += std::exchange(other.bytes_, 0);
}

Ledger::Ledger(const std::vector<int64_t>& budget_bytes) {
  for (const int64_t bytes : budget_bytes) usage_.push_back({.budget_bytes = bytes, .wanted_bytes = bytes});
}

void Ledger::SetBudget(Memory memory, int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  MemoryUsage& usage = usage_[Index(memory)];
  usage.wanted_bytes = bytes;
  SettleBudget(usage);
}

std::optional<Reservation> Ledger::TryReserve(Memory memory, MemoryKind kind, int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  MemoryUsage& usage = usage_[Index(memory)];
  if (bytes < 0 || bytes > usage.budget_bytes - usage.total_bytes()) return std::nullopt;
  BytesOf(usage, kind) += bytes;
  usage.peak_bytes = std::max(usage.peak_bytes, usage.total_bytes());
  for (auto& [id, watermark] : watermarks_) {
    if (watermark.memory == memory) watermark.bytes = std::max(watermark.bytes, usage.total_bytes());
  }
  return Reservation(this, memory, kind, bytes);
}

MemoryUsage Ledger::Usage(Memory memory) const {
  absl::MutexLock lock(&mutex_);
  return usage_[Index(memory)];
}

int64_t Ledger::BeginWatermark(Memory memory) {
  absl::MutexLock lock(&mutex_);
  watermarks_[next_watermark_] = {memory, usage_[Index(memory)].total_bytes()};
  return next_watermark_++;
}

int64_t Ledger::Watermark(int64_t id) const {
  absl::MutexLock lock(&mutex_);
  return watermarks_.at(id).bytes;
}

void Ledger::EndWatermark(int64_t id) {
  absl::MutexLock lock(&mutex_);
  watermarks_.erase(id);
}

void Ledger::Release(Memory memory, MemoryKind kind, int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  MemoryUsage& usage = usage_[Index(memory)];
  BytesOf(usage, kind) -= bytes;
  SettleBudget(usage);
}

void Ledger::Rebook(Memory memory, MemoryKind from, MemoryKind to, int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  BytesOf(usage_[Index(memory)], from) -= bytes;
  BytesOf(usage_[Index(memory)], to) += bytes;
}

}  // namespace ditserve
