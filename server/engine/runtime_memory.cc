#include "server/engine/runtime_memory.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "server/engine/warm_up.h"

namespace ditserve {

absl::StatusOr<std::shared_ptr<RuntimeMemory>> RuntimeMemory::Make(Device* device, Arena* arena, Ledger* ledger,
                                                                   Executor* executor, TensorMover* link) {
  const std::shared_ptr<RuntimeMemory> memory(new RuntimeMemory(device, arena, ledger));
  const absl::Status booked = memory->Book(*executor, *link);
  if (booked.ok()) return memory;
  memory->End();  // LibTorch may have it still, when the arguments are gone.
  return booked;
}

absl::Status RuntimeMemory::Book(Executor& executor, TensorMover& link) {
  DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus before, device_.MemoryStatusOf(device_.memory()));
  const int64_t ours_before = arena_.committed_bytes();
  const absl::Status warm = WarmUp(device_, executor, link, shared_from_this());
  Trim();
  DITSERVE_RETURN_IF_ERROR(refused());
  DITSERVE_RETURN_IF_ERROR(warm);
  DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus after, device_.MemoryStatusOf(device_.memory()));
  const int64_t ours = arena_.committed_bytes() - ours_before;
  // (Others may have given some back meanwhile.)
  const int64_t warmed = std::max<int64_t>(before.available_bytes - after.available_bytes - ours, 0);
  const int64_t elsewhere = device_.runtime_bytes() + warmed;
  std::optional<Reservation> reserved = ledger_.TryReserve(device_.memory(), MemoryKind::kRuntime, elsewhere);
  if (!reserved) return Exhausted(elsewhere);
  elsewhere_ = *std::move(reserved);
  return absl::OkStatus();
}

RuntimeMemory::~RuntimeMemory() { End(); }

std::byte* RuntimeMemory::Allocate(int64_t bytes) {
  absl::StatusOr<Part> part = TakePart(arena_.RoundUp(bytes));
  const absl::MutexLock lock(&mutex_);
  if (!part.ok()) {
    refused_ = part.status();
    return nullptr;
  }
  std::byte* const data = part->buffer.data();
  used_[data] = *std::move(part);
  return data;
}

absl::StatusOr<RuntimeMemory::Part> RuntimeMemory::TakePart(int64_t bytes) {
  {
    const absl::MutexLock lock(&mutex_);
    if (auto spare = spare_.extract(bytes)) return std::move(spare.mapped());
  }
  std::optional<Reservation> reserved = ledger_.TryReserve(device_.memory(), MemoryKind::kRuntime, bytes);
  if (!reserved) return Exhausted(bytes);
  Part part{*std::move(reserved), arena_.Take(bytes)};
  DITSERVE_RETURN_IF_ERROR(part.buffer.Prepare());
  return part;
}

void RuntimeMemory::Free(std::byte* data) {
  const absl::MutexLock lock(&mutex_);
  auto part = used_.extract(data);
  if (part.empty()) return;  // It has ended.
  const int64_t bytes = part.mapped().buffer.size_bytes();
  spare_.emplace(bytes, std::move(part.mapped()));
}

void RuntimeMemory::End() {
  device_.EndOperations();
  {
    const absl::MutexLock lock(&mutex_);
    for (auto& [data, part] : used_) spare_.emplace(part.buffer.size_bytes(), std::move(part));
    used_.clear();
  }
  Trim();
  { const Reservation ended = std::move(elsewhere_); }
}

void RuntimeMemory::Trim() {
  std::multimap<int64_t, Part> spare;
  {
    const absl::MutexLock lock(&mutex_);
    std::swap(spare, spare_);
  }
  if (spare.empty()) return;
  int64_t bytes = 0;
  // After an error the device is lost, or its operations are finished.
  const absl::StatusOr<EventPtr> operations = device_.RecordOperations();
  for (auto& [size, part] : spare) {
    bytes += size;
    if (operations.ok()) part.buffer.InUseUntil(*operations);
    part.buffer = Buffer();
  }
  arena_.Trim(bytes).Free();  // Before their reservations end.
}

absl::Status RuntimeMemory::refused() const {
  const absl::MutexLock lock(&mutex_);
  return refused_;
}

absl::Status RuntimeMemory::Exhausted(int64_t bytes) const {
  const MemoryUsage usage = ledger_.Usage(device_.memory());
  return absl::ResourceExhaustedError(
      absl::StrCat("the budget of ", device_.name(), " is ", usage.budget_bytes, " bytes; slots for casts take ",
                   usage.staging_bytes, ", LibTorch's workspaces and what ", device_.name(), "'s runtime holds itself ",
                   usage.runtime_bytes + bytes, " or more"));
}

}  // namespace ditserve
