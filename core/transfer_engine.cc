#include "core/transfer_engine.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"

namespace ditserve {
namespace {

// Large enough for a disk's full speed, small enough that a few fit beside each other in the last-level cache.
constexpr int64_t kPieceBytes = 4 << 20;
constexpr int kNiceness = 10;
constexpr int64_t kSlotBytes = kPieceBytes + 2 * Checkpoint::kReadAlignment;

}  // namespace

// A transfer cut into pieces that threads take one by one.
class TransferEngine::Job {
 public:
  Job(Device* device, Transfer transfer);

  // The next piece that nobody has taken. Callers serialize, and take each piece once.
  size_t TakePiece() { return taken_++; }
  bool AllTaken() const { return taken_ == pieces_.size(); }

  // Does one piece, and calls `done` if it was the last to finish.
  void Do(size_t piece, Buffer& slot);

 private:
  struct Piece {
    int tensor;
    int64_t begin;  // Elements.
    int64_t count;
  };

  void CutIntoPieces();
  absl::Status PrepareTargets() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Targets are allocated by the first thread that comes, so that no lock of a caller is held meanwhile.
  absl::Status Begin() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<TransferCost> Move(const Piece& piece, Buffer& slot);
  void Finish(const absl::StatusOr<TransferCost>& moved) ABSL_LOCKS_EXCLUDED(mutex_);

  Device* const device_;
  Transfer transfer_;
  std::optional<CopyLayout> source_layout_;
  std::vector<CopyLayout> layouts_;  // Of the targets.
  std::vector<Piece> pieces_;
  size_t taken_ = 0;

  absl::Mutex mutex_;
  bool prepared_ ABSL_GUARDED_BY(mutex_) = false;
  size_t finished_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);  // The first error.
  TransferCost cost_ ABSL_GUARDED_BY(mutex_);
};

TransferEngine::Job::Job(Device* device, Transfer transfer) : device_(device), transfer_(std::move(transfer)) {
  const ModelWeights::Module& module = transfer_.model->module(transfer_.module);
  if (transfer_.source) source_layout_ = LayoutOf(module, transfer_.source->form.dtype);
  for (const Transfer::Target& target : transfer_.targets) layouts_.push_back(LayoutOf(module, target.form.dtype));
  CutIntoPieces();
}

void TransferEngine::Job::CutIntoPieces() {
  const ModelWeights::Module& module = transfer_.model->module(transfer_.module);
  for (size_t i = 0; i < module.stored.size(); ++i) {
    const StoredTensor& stored = *module.stored[i];
    const int64_t elements = ElementCount(stored.shape);
    const int64_t step = kPieceBytes / SizeOf(transfer_.source ? transfer_.source->form.dtype : stored.dtype);
    for (int64_t begin = 0; begin < elements; begin += step) {
      pieces_.push_back({static_cast<int>(i), begin, std::min(step, elements - begin)});
    }
  }
}

absl::Status TransferEngine::Job::PrepareTargets() {
  if (prepared_) return absl::OkStatus();
  prepared_ = true;
  for (const Transfer::Target& target : transfer_.targets) DITSERVE_RETURN_IF_ERROR(target.buffer->Prepare());
  return absl::OkStatus();
}

absl::Status TransferEngine::Job::Begin() {
  absl::MutexLock lock(&mutex_);
  if (status_.ok()) status_ = PrepareTargets();
  return status_;
}

void TransferEngine::Job::Do(size_t piece, Buffer& slot) {
  const absl::Status begun = Begin();
  Finish(begun.ok() ? Move(pieces_[piece], slot) : begun);
}

absl::StatusOr<TransferCost> TransferEngine::Job::Move(const Piece& piece, Buffer& slot) {
  const StoredTensor& stored = *transfer_.model->module(transfer_.module).stored[piece.tensor];
  TransferCost cost;
  ElementSpan from;
  Precision precision(stored.dtype);
  if (transfer_.source) {
    const Transfer::Source& source = *transfer_.source;
    precision = source.form.precisions[piece.tensor];
    from = {
        source.buffer->memory(),
        source.buffer->data() + source_layout_->offsets_bytes[piece.tensor] + piece.begin * SizeOf(source.form.dtype),
        source.form.dtype};
  } else {
    const int64_t size = SizeOf(stored.dtype);
    DITSERVE_ASSIGN_OR_RETURN(
        const absl::Span<const std::byte> read,
        transfer_.model->checkpoint().Read(stored, piece.begin * size, piece.count * size,
                                           absl::MakeSpan(slot.data(), static_cast<size_t>(slot.size_bytes()))));
    cost.disk_read_bytes = piece.count * size;
    from = {Memory::kHost, slot.data() + (read.data() - slot.data()), stored.dtype};
  }
  for (size_t i = 0; i < transfer_.targets.size(); ++i) {
    const Transfer::Target& target = transfer_.targets[i];
    const ElementSpan to = {
        target.buffer->memory(),
        target.buffer->data() + layouts_[i].offsets_bytes[piece.tensor] + piece.begin * SizeOf(target.form.dtype),
        target.form.dtype};
    const Precision& later = target.form.precisions[piece.tensor];
    DITSERVE_RETURN_IF_ERROR(device_->Convert(from, precision.RoundingsTo(later), to, piece.count));
    if (from.memory == Memory::kHost && to.memory == Memory::kDevice) {
      cost.device_copy_bytes += piece.count * SizeOf(from.dtype);
    }
    from = to;
    precision = later;
  }
  return cost;
}

void TransferEngine::Job::Finish(const absl::StatusOr<TransferCost>& moved) {
  absl::Status status;
  TransferCost cost;
  {
    absl::MutexLock lock(&mutex_);
    if (moved.ok()) {
      cost_.disk_read_bytes += moved->disk_read_bytes;
      cost_.device_copy_bytes += moved->device_copy_bytes;
    } else {
      status_.Update(moved.status());
    }
    if (++finished_ < pieces_.size()) return;
    status = status_;
    cost = cost_;
  }
  std::move(transfer_.done)(std::move(status), cost);
}

int64_t TransferEngine::StagingBytes(int threads) { return threads * kSlotBytes; }

absl::StatusOr<std::unique_ptr<TransferEngine>> TransferEngine::Make(Device* device, Ledger* ledger, int threads) {
  std::vector<Buffer> slots;
  for (int i = 0; i < threads; ++i) {
    std::optional<Reservation> reservation = ledger->TryReserve(Memory::kHost, MemoryKind::kStaging, kSlotBytes);
    if (!reservation) {
      return absl::ResourceExhaustedError(absl::StrCat("the host budget is ", ledger->Usage(Memory::kHost).budget_bytes,
                                                       " bytes; ", threads, " transfer threads take ",
                                                       StagingBytes(threads), " for their slots"));
    }
    Buffer slot(device, *std::move(reservation));
    DITSERVE_RETURN_IF_ERROR(slot.Prepare());
    slots.push_back(std::move(slot));
  }
  return std::unique_ptr<TransferEngine>(new TransferEngine(device, std::move(slots)));
}

TransferEngine::TransferEngine(Device* device, std::vector<Buffer> slots) : device_(device), slots_(std::move(slots)) {
  for (Buffer& slot : slots_) threads_.emplace_back([this, &slot] { Run(&slot); });
}

TransferEngine::~TransferEngine() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

void TransferEngine::Submit(Transfer transfer) {
  auto job = std::make_shared<Job>(device_, std::move(transfer));
  absl::MutexLock lock(&mutex_);
  queue_.push_back(std::move(job));
}

std::shared_ptr<TransferEngine::Job> TransferEngine::NextPiece(size_t* piece) {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &TransferEngine::HasWorkOrStops));
  if (queue_.empty()) return nullptr;
  std::shared_ptr<Job> job = queue_.front();
  *piece = job->TakePiece();
  if (job->AllTaken()) queue_.pop_front();
  return job;
}

void TransferEngine::Run(Buffer* slot) {
  // Computing goes first: where it is what takes the time, a product whose threads are interrupted waits for the last of
  // them; where moving is, computing waits and leaves the processor to us. (Linux: of this thread alone. A hint.)
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNiceness);
  size_t piece = 0;
  while (const std::shared_ptr<Job> job = NextPiece(&piece)) job->Do(piece, *slot);
}

}  // namespace ditserve
