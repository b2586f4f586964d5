#include "core/residency/transfer_engine.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

// Large enough for a disk's full speed, small enough that a few fit beside each other in the last-level cache.
constexpr int64_t kPieceBytes = 4 << 20;
constexpr int64_t kPageBytes = Checkpoint::kReadAlignment;
constexpr int kNiceness = 10;

int64_t PageOf(int64_t bytes) { return bytes / kPageBytes * kPageBytes; }

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
  // Elements of one parameter.
  struct Segment {
    int parameter;
    int64_t begin;
    int64_t count;
  };
  // What is read in one go: neighbours in a shard, or a part of a source's parameter.
  struct Piece {
    std::vector<Segment> segments;
    int64_t stored_bytes = 0;
  };

  bool IsReadInPlace() const;
  void CutSource();
  void CutRun(const ModelWeights::Run& run);
  // The elements of a segment in a copy.
  static ElementSpan SpanIn(const Buffer& buffer, const CopyLayout& layout, DType dtype, const Segment& segment);
  ElementSpan SpanIn(size_t target, const Segment& segment) const;
  absl::Status PrepareTargets() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Targets are allocated by the first thread that comes, so that no lock of a caller is held meanwhile.
  absl::Status Begin() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<TransferCost> Move(const Piece& piece, Buffer& slot);
  // Reads the piece, and sets `at` to where its first byte then is: in the slot, or in the first target.
  absl::Status Read(const Piece& piece, Buffer& slot, std::byte** at);
  // Takes the segment through the targets that `from` is not in yet.
  absl::Status Convert(const Segment& segment, ElementSpan from, TransferCost& cost);
  void Finish(const absl::StatusOr<TransferCost>& moved) ABSL_LOCKS_EXCLUDED(mutex_);

  Device* const device_;
  Transfer transfer_;
  std::optional<CopyLayout> source_layout_;
  std::vector<CopyLayout> layouts_;  // Of the targets.
  bool read_in_place_ = false;       // Straight into the first target.
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
  const auto layout = [&](const Buffer& buffer, const CopyForm& form) {
    return LayoutOf(module, form.dtype, device->IsInHostMemory(buffer.memory()));
  };
  for (const Transfer::Target& target : transfer_.targets) layouts_.push_back(layout(*target.buffer, target.form));
  if (transfer_.source) {
    source_layout_ = layout(*transfer_.source->buffer, transfer_.source->form);
    CutSource();
  } else {
    read_in_place_ = IsReadInPlace();
    for (const ModelWeights::Run& run : module.runs) CutRun(run);
  }
}

bool TransferEngine::Job::IsReadInPlace() const {
  const ModelWeights::Module& module = transfer_.model->module(transfer_.module);
  if (!layouts_.front().as_stored) return false;
  for (size_t i = 0; i < module.stored.size(); ++i) {
    const Precision stored(module.stored[i]->dtype);
    if (!stored.RoundingsTo(transfer_.targets.front().form.precisions[i]).empty()) return false;
  }
  return true;
}

void TransferEngine::Job::CutSource() {
  const ModelWeights::Module& module = transfer_.model->module(transfer_.module);
  const int64_t step = kPieceBytes / SizeOf(transfer_.source->form.dtype);
  for (size_t i = 0; i < module.stored.size(); ++i) {
    const int64_t elements = ElementCount(module.stored[i]->shape);
    for (int64_t begin = 0; begin < elements; begin += step) {
      pieces_.push_back({{{static_cast<int>(i), begin, std::min(step, elements - begin)}}});
    }
  }
}

// A piece ends at a page, so that the next begins with one; but where elements do not begin at multiples of their size,
// with the last element that is whole.
void TransferEngine::Job::CutRun(const ModelWeights::Run& run) {
  const ModelWeights::Module& module = transfer_.model->module(transfer_.module);
  int64_t end = 0;  // Of the piece that is being filled, in the shard.
  for (const int parameter : run.parameters) {
    const StoredTensor& stored = *module.stored[parameter];
    const int64_t size = SizeOf(stored.dtype), elements = stored.size_bytes / size;
    for (int64_t begin = 0; begin < elements;) {
      const int64_t at = stored.offset_bytes + begin * size;
      if (at + size > end) {
        end = PageOf(at) + kPieceBytes;
        pieces_.emplace_back();
      }
      const int64_t count = std::min(elements - begin, (end - at) / size);
      pieces_.back().segments.push_back({parameter, begin, count});
      pieces_.back().stored_bytes += count * size;
      begin += count;
    }
  }
}

ElementSpan TransferEngine::Job::SpanIn(const Buffer& buffer, const CopyLayout& layout, DType dtype,
                                        const Segment& segment) {
  std::byte* const data = buffer.data() + layout.offsets_bytes[segment.parameter] + segment.begin * SizeOf(dtype);
  return {buffer.memory(), data, dtype};
}

ElementSpan TransferEngine::Job::SpanIn(size_t target, const Segment& segment) const {
  return SpanIn(*transfer_.targets[target].buffer, layouts_[target], transfer_.targets[target].form.dtype, segment);
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
  TransferCost cost;
  if (transfer_.source) {
    const Transfer::Source& source = *transfer_.source;
    for (const Segment& segment : piece.segments) {
      const ElementSpan from = SpanIn(*source.buffer, *source_layout_, source.form.dtype, segment);
      DITSERVE_RETURN_IF_ERROR(Convert(segment, from, cost));
    }
    return cost;
  }
  std::byte* at = nullptr;
  DITSERVE_RETURN_IF_ERROR(Read(piece, slot, &at));
  cost.disk_read_bytes = piece.stored_bytes;
  for (const Segment& segment : piece.segments) {
    const DType dtype = transfer_.model->module(transfer_.module).stored[segment.parameter]->dtype;
    DITSERVE_RETURN_IF_ERROR(Convert(segment, {Memory::kHost, at, dtype}, cost));
    at += segment.count * SizeOf(dtype);
  }
  return cost;
}

absl::Status TransferEngine::Job::Read(const Piece& piece, Buffer& slot, std::byte** at) {
  const Segment& first = piece.segments.front();
  const StoredTensor& stored = *transfer_.model->module(transfer_.module).stored[first.parameter];
  const int64_t begin = first.begin * SizeOf(stored.dtype);
  const int64_t in_page = (stored.offset_bytes + begin) % kPageBytes;
  std::byte* const pages = read_in_place_ ? SpanIn(0, first).data - in_page : slot.data();
  const int64_t size = PageOf(in_page + piece.stored_bytes + kPageBytes - 1);
  *at = pages + in_page;
  return transfer_.model->checkpoint()
      .Read(stored, begin, piece.stored_bytes, absl::MakeSpan(pages, static_cast<size_t>(size)))
      .status();
}

absl::Status TransferEngine::Job::Convert(const Segment& segment, ElementSpan from, TransferCost& cost) {
  const StoredTensor& stored = *transfer_.model->module(transfer_.module).stored[segment.parameter];
  Precision precision(stored.dtype);
  if (transfer_.source) precision = transfer_.source->form.precisions[segment.parameter];
  for (size_t i = 0; i < transfer_.targets.size(); ++i) {
    const ElementSpan to = SpanIn(i, segment);
    const Precision& later = transfer_.targets[i].form.precisions[segment.parameter];
    const bool is_there = i == 0 && read_in_place_;
    if (!is_there) {
      DITSERVE_RETURN_IF_ERROR(device_->Convert(from, precision.RoundingsTo(later), to, segment.count));
    }
    if (from.memory == Memory::kHost && to.memory == Memory::kDevice) {
      cost.device_copy_bytes += segment.count * SizeOf(from.dtype);
    }
    from = to;
    precision = later;
  }
  return absl::OkStatus();
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

int64_t TransferEngine::StagingBytes(int threads) { return threads * kPieceBytes; }

absl::StatusOr<std::unique_ptr<TransferEngine>> TransferEngine::Make(Device* device, Ledger* ledger, int threads) {
  std::vector<Buffer> slots;
  for (int i = 0; i < threads; ++i) {
    std::optional<Reservation> reservation = ledger->TryReserve(Memory::kHost, MemoryKind::kStaging, kPieceBytes);
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
  // Computing goes first: where it is what takes the time, a product whose threads are interrupted waits for the last
  // of them; where moving is, computing waits and leaves the processor to us. (Linux: of this thread alone. A hint.)
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNiceness);
  size_t piece = 0;
  while (const std::shared_ptr<Job> job = NextPiece(&piece)) job->Do(piece, *slot);
}

}  // namespace ditserve
