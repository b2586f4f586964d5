#include "server/engine/tensor_link.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "models/weights.h"

namespace ditserve {
namespace {

// Elements of a contiguous tensor; a complex one's are pairs of floats.
struct Elements {
  std::byte* data;
  DType dtype;
  int64_t count;

  std::byte* at(int64_t element) const { return data + element * SizeOf(dtype); }
};

Elements ElementsOf(const at::Tensor& tensor) {
  TORCH_INTERNAL_ASSERT(tensor.is_contiguous());
  auto* const data = static_cast<std::byte*>(tensor.data_ptr());
  if (tensor.is_complex()) return {data, DType::kFloat32, 2 * tensor.numel()};
  return {data, DTypeOf(tensor.scalar_type()), tensor.numel()};
}

}  // namespace

// A tensor on its way, which stays until its last piece has arrived.
struct TensorLink::Moving {
  Moving(bool into_host, at::Tensor source_tensor, at::Tensor target_tensor, Done then)
      : to_host(into_host),
        from(std::move(source_tensor)),
        to(std::move(target_tensor)),
        source(ElementsOf(from)),
        target(ElementsOf(to)),
        done(std::move(then)) {}

  const bool to_host;
  at::Tensor from, to;  // Until the end.
  const Elements source, target;
  Done done;
  int64_t begun = 0;    // Elements.
  int64_t arrived = 0;  // Elements.

  bool AllBegun() const { return begun == source.count; }
  bool HasEnded() const { return done == nullptr; }
  // Tells it once, whatever pieces come after. What they still read of the device's memory the operations that were
  // issued hold.
  void End(const absl::Status& status) {
    from = to = at::Tensor();
    if (done) std::exchange(done, nullptr)(status);
  }
};

absl::StatusOr<std::unique_ptr<TensorLink>> TensorLink::Make(Device* device, Arena* host, Ledger* ledger,
                                                             Executor* executor) {
  constexpr int64_t kBytes = kSlots * kSlotBytes;
  std::optional<Reservation> reservation = ledger->TryReserve(Memory::kHost, MemoryKind::kStaging, kBytes);
  if (!reservation) {
    return absl::ResourceExhaustedError(absl::StrCat("the host budget is ", ledger->Usage(Memory::kHost).budget_bytes,
                                                     " bytes; slots for inputs and outputs take ", kBytes));
  }
  Buffer slots = host->Take(kBytes);
  DITSERVE_RETURN_IF_ERROR(slots.Prepare());
  return std::unique_ptr<TensorLink>(new TensorLink(device, host, executor, *std::move(reservation), std::move(slots)));
}

TensorLink::TensorLink(Device* device, Arena* host, Executor* executor, Reservation reservation, Buffer slots)
    : device_(device),
      host_(host),
      executor_(executor),
      reservation_(std::move(reservation)),
      slots_(std::move(slots)) {
  for (int i = 0; i < kSlots; ++i) free_.push_back(slots_.data() + i * kSlotBytes);
}

TensorLink::~TensorLink() {
  completions_.reset();  // The device reads and writes the slots no more.
  slots_ = Buffer();
  host_->Trim(reservation_.bytes()).Free();  // Before the reservation ends.
}

void TensorLink::ToDevice(const at::Tensor& from, const at::Tensor& to, Done done) {
  Begin(std::make_shared<Moving>(/*into_host=*/false, from, to, std::move(done)));
}

void TensorLink::ToHost(const at::Tensor& from, const at::Tensor& to, Done done) {
  Begin(std::make_shared<Moving>(/*into_host=*/true, from, to, std::move(done)));
}

void TensorLink::Begin(std::shared_ptr<Moving> moving) {
  if (moving->AllBegun()) return moving->End(absl::OkStatus());  // It has no elements.
  waiting_.push_back(std::move(moving));
  Advance();
}

void TensorLink::Advance() {
  while (!waiting_.empty() && !free_.empty()) {
    const std::shared_ptr<Moving> moving = waiting_.front();
    if (moving->HasEnded()) {
      waiting_.pop_front();
      continue;
    }
    const absl::Status begun = BeginPiece(moving, free_.back());
    if (begun.ok()) free_.pop_back();
    if (begun.ok() && !moving->AllBegun()) continue;
    waiting_.pop_front();
    if (!begun.ok() || !moving->to_host) moving->End(begun);
  }
}

absl::Status TensorLink::BeginPiece(const std::shared_ptr<Moving>& moving, std::byte* slot) {
  const Elements &source = moving->source, &target = moving->target;
  const int64_t begin = moving->begun;
  const DType on_host = moving->to_host ? target.dtype : source.dtype;
  const int64_t count = std::min(source.count - begin, kSlotBytes / SizeOf(on_host));
  ElementSpan from = {device_->memory(), source.at(begin), source.dtype};
  ElementSpan to = {device_->memory(), target.at(begin), target.dtype};
  (moving->to_host ? to : from) = {Memory::kHost, slot, on_host};
  if (!moving->to_host) std::memcpy(slot, source.at(begin), static_cast<size_t>(count * SizeOf(on_host)));
  DITSERVE_RETURN_IF_ERROR(device_->Operate({from, {}, to, count}));
  // After an error all operations are finished: nothing uses the slot.
  DITSERVE_ASSIGN_OR_RETURN(EventPtr passed, device_->RecordOperations());
  moving->begun += count;
  // What is on the device already is not held until somebody notes it: its memory is the pass', which counts on it.
  const std::weak_ptr<Moving> noted = moving;
  completions_->When({std::move(passed)}, [this, noted, held = moving->to_host ? moving : nullptr, slot, begin,
                                           count](const absl::Status& status) {
    executor_->Post(
        [this, noted, held, slot, begin, count, status] { EndPiece(noted.lock().get(), slot, begin, count, status); });
  });
  return absl::OkStatus();
}

void TensorLink::EndPiece(Moving* moving, std::byte* slot, int64_t begin, int64_t count, const absl::Status& status) {
  free_.push_back(slot);
  if (moving != nullptr && !status.ok()) moving->End(status);
  if (moving != nullptr && !moving->HasEnded() && moving->to_host) {
    std::memcpy(moving->target.at(begin), slot, static_cast<size_t>(count * SizeOf(moving->target.dtype)));
    moving->arrived += count;
    if (moving->arrived == moving->source.count) moving->End(status);
  }
  Advance();
}

}  // namespace ditserve
