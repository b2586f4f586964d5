#include "core/residency/transfers/transfer_job.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "core/base/processor_time.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

constexpr int64_t kPageBytes = Checkpoint::kReadAlignment;

int64_t PageOf(int64_t bytes) { return bytes / kPageBytes * kPageBytes; }

}  // namespace

TransferJob::TransferJob(Transfer transfer) : transfer_(std::move(transfer)) {
  const ModelWeights::Module& module = transfer_.model->module(transfer_.module);
  const auto layout = [&](const Buffer& buffer, const CopyForm& form) {
    assert(std::none_of(form.encodings.begin(), form.encodings.end(),
                        [](const Encoding& encoding) { return encoding.scales.has_value(); }));
    return LayoutOf(module, form, transfer_.device->IsInHostMemory(buffer.memory()));
  };
  std::vector<const CopyForm*> forms;
  for (const Transfer::Target& target : transfer_.targets) {
    layouts_.push_back(layout(*target.buffer, *target.form));
    forms.push_back(target.form);
  }
  path_ = PathOf(module, transfer_.source ? transfer_.source->form : nullptr, forms, layouts_.front().as_stored);
  if (transfer_.source) {
    source_layout_ = layout(*transfer_.source->buffer, *transfer_.source->form);
    CutSource();
  } else {
    for (const ModelWeights::Run& run : module.runs) CutRun(run);
  }
  if (pieces_.empty()) pieces_.emplace_back();  // A module without elements is moved by preparing its targets.
  for (const Piece& piece : pieces_) bytes_ += piece.bytes;
}

void TransferJob::Count(size_t piece, Transferred& done) const {
  (transfer_.source ? done.copy_bytes : done.checkpoint_bytes) += pieces_[piece].bytes;
}

void TransferJob::Take(size_t piece) {
  pieces_[piece].taken = true;
  while (!AllTaken() && pieces_[first_free_].taken) ++first_free_;
}

size_t TransferJob::TakeNext() {
  const size_t piece = first_free_;
  Take(piece);
  return piece;
}

void TransferJob::CutSource() {
  const ModelWeights::Module& module = transfer_.model->module(transfer_.module);
  for (size_t i = 0; i < module.stored.size(); ++i) {
    const int64_t size = SizeOf(transfer_.source->form->encodings[i].dtype);
    const int64_t step = kMostPieceBytes / size;
    const int64_t elements = ElementCount(module.stored[i]->shape);
    for (int64_t begin = 0; begin < elements; begin += step) {
      const int64_t count = std::min(step, elements - begin);
      pieces_.push_back({{{static_cast<int>(i), begin, count}}, count * size});
    }
  }
}

// A piece ends at a page, so that the next begins with one; but where elements do not begin at multiples of their size,
// with the last element that is whole.
void TransferJob::CutRun(const ModelWeights::Run& run) {
  const ModelWeights::Module& module = transfer_.model->module(transfer_.module);
  int64_t end = 0;  // Of the piece that is being filled, in the shard.
  for (const int parameter : run.parameters) {
    const StoredTensor& stored = *module.stored[parameter];
    const int64_t size = SizeOf(stored.dtype), elements = stored.size_bytes / size;
    for (int64_t begin = 0; begin < elements;) {
      const int64_t at = stored.offset_bytes + begin * size;
      if (at + size > end) {
        end = PageOf(at) + kMostPieceBytes;
        pieces_.emplace_back();
      }
      const int64_t count = std::min(elements - begin, (end - at) / size);
      pieces_.back().segments.push_back({parameter, begin, count});
      pieces_.back().bytes += count * size;
      begin += count;
    }
  }
}

ElementSpan TransferJob::SpanIn(const Buffer& buffer, const CopyLayout& layout, const CopyForm& form,
                                const Segment& segment) {
  const DType dtype = form.encodings[segment.parameter].dtype;
  std::byte* const data = buffer.data() + layout.places[segment.parameter].offset_bytes + segment.begin * SizeOf(dtype);
  return {buffer.memory(), data, dtype};
}

ElementSpan TransferJob::SpanIn(size_t target, const Segment& segment) const {
  return SpanIn(*transfer_.targets[target].buffer, layouts_[target], *transfer_.targets[target].form, segment);
}

absl::Status TransferJob::PrepareTargets() const {
  for (const Transfer::Target& target : transfer_.targets) DITSERVE_RETURN_IF_ERROR(target.buffer->Prepare());
  return absl::OkStatus();
}

absl::Status TransferJob::Prepare() {
  {
    const absl::MutexLock lock(&mutex_);
    if (stage_ != Stage::kNew) {
      mutex_.Await(absl::Condition(this, &TransferJob::IsPrepared));
      return status_;
    }
    stage_ = Stage::kPreparing;
  }
  range_ = ProfilerRange(ProfilerRange::kCopy, transfer_.model->module(transfer_.module).spec.path);
  absl::Status prepared = PrepareTargets();
  const absl::MutexLock lock(&mutex_);
  stage_ = Stage::kPrepared;
  status_.Update(prepared);
  return status_;
}

absl::StatusOr<std::byte*> TransferJob::Read(size_t piece, std::byte* slot, std::vector<Work>& work) const {
  const Piece& what = pieces_[piece];
  if (what.segments.empty()) return slot;
  const Segment& first = what.segments.front();
  const StoredTensor& stored = *transfer_.model->module(transfer_.module).stored[first.parameter];
  const int64_t begin = first.begin * SizeOf(stored.dtype);
  const int64_t in_page = (stored.offset_bytes + begin) % kPageBytes;
  std::byte* const pages = slot == nullptr ? SpanIn(0, first).data - in_page : slot;
  const int64_t size = PageOf(in_page + what.bytes + kPageBytes - 1);
  const int64_t fresh_bytes = path_.read_in_place ? FreshBytes(0, what.bytes) : 0;
  const absl::Duration begun = ProcessorTime();
  const absl::Status read = transfer_.model->checkpoint()
                                .Read(stored, begin, what.bytes, absl::MakeSpan(pages, static_cast<size_t>(size)))
                                .status();
  work.push_back({TransferStep(), {what.bytes, fresh_bytes, ProcessorTime() - begun}});
  DITSERVE_RETURN_IF_ERROR(read);
  return pages + in_page;
}

absl::Status TransferJob::MoveRead(size_t piece, std::byte* at, Events& readers, Moved& moved) const {
  for (const Segment& segment : pieces_[piece].segments) {
    const DType dtype = transfer_.model->module(transfer_.module).stored[segment.parameter]->dtype;
    DITSERVE_RETURN_IF_ERROR(Convert(segment, {Memory::kHost, at, dtype}, nullptr, readers, moved));
    at += segment.count * SizeOf(dtype);
  }
  return absl::OkStatus();
}

absl::Status TransferJob::Move(size_t piece, Moved& moved) const {
  if (transfer_.source) return MoveFromSource(piece, moved);
  DITSERVE_ASSIGN_OR_RETURN(std::byte* const at, Read(piece, /*slot=*/nullptr, moved.work));
  moved.cost.disk_read_bytes = pieces_[piece].bytes;
  Events readers;  // It stays until the transfer has enqueued what reads it.
  return MoveRead(piece, at, readers, moved);
}

absl::Status TransferJob::MoveFromSource(size_t piece, Moved& moved) const {
  const Transfer::Source& source = *transfer_.source;
  Events readers;  // It stays until the transfer is done.
  for (const Segment& segment : pieces_[piece].segments) {
    const ElementSpan from = SpanIn(*source.buffer, *source_layout_, *source.form, segment);
    DITSERVE_RETURN_IF_ERROR(Convert(segment, from, source.buffer->ready(), readers, moved));
  }
  return absl::OkStatus();
}

absl::Status TransferJob::Convert(const Segment& segment, ElementSpan from, EventPtr written, Events& readers,
                                  Moved& moved) const {
  const int64_t read_bytes = segment.count * SizeOf(from.dtype);
  moved.written.resize(transfer_.targets.size());
  for (size_t i = 0; i < transfer_.targets.size(); ++i) {
    const Transfer::Target& target = transfer_.targets[i];
    const ElementSpan to = SpanIn(i, segment);
    if (i > 0 || !path_.read_in_place) {
      Events after = target.buffer->in_use_until();
      if (written != nullptr) after.push_back(std::move(written));
      const TransferStep& step = path_.steps[i][static_cast<size_t>(segment.parameter)];
      const auto through = absl::MakeSpan(step).subspan(1, step.size() - 2);
      const absl::Duration begun = ProcessorTime();
      DITSERVE_ASSIGN_OR_RETURN(written, transfer_.device->Enqueue({from, through, to, segment.count}, after));
      if (transfer_.device->IsInHostMemory(to.memory)) {
        const int64_t bytes = segment.count * SizeOf(from.dtype);
        moved.work.push_back({step, {bytes, FreshBytes(i, read_bytes), ProcessorTime() - begun}});
      }
      if (written != nullptr) moved.written[i].push_back(written);
      if (written != nullptr && i == 0) readers.push_back(written);
    }
    if (IsHost(from.memory) && !IsHost(to.memory)) moved.cost.device_copy_bytes += segment.count * SizeOf(from.dtype);
    from = to;
  }
  return absl::OkStatus();
}

bool TransferJob::Finish(const absl::Status& status, Moved moved) {
  {
    const absl::MutexLock lock(&mutex_);
    status_.Update(status);
    moved_.cost.disk_read_bytes += moved.cost.disk_read_bytes;
    moved_.cost.device_copy_bytes += moved.cost.device_copy_bytes;
    moved_.written.resize(transfer_.targets.size());
    for (size_t i = 0; i < moved.written.size(); ++i) {
      moved_.written[i].insert(moved_.written[i].end(), moved.written[i].begin(), moved.written[i].end());
    }
    if (++finished_ < pieces_.size()) return false;
    result_ = status_;
    moved = std::move(moved_);
  }
  for (size_t i = 0; i < transfer_.targets.size(); ++i) {
    // What makes the next target reads this one, which may be given back as soon as it is ready.
    Events events = moved.written[i];
    if (i + 1 < transfer_.targets.size()) {
      events.insert(events.end(), moved.written[i + 1].begin(), moved.written[i + 1].end());
    }
    result_.Update(SetReady(transfer_.targets[i], events));
  }
  if (ready_.empty()) range_ = ProfilerRange();
  if (transfer_.enqueued) std::move(transfer_.enqueued)(result_, moved.cost);
  return true;
}

absl::Status TransferJob::SetReady(const Transfer::Target& target, const Events& uses) {
  if (uses.empty()) return absl::OkStatus();
  absl::StatusOr<EventPtr> ready = uses.front();
  if (uses.size() > 1) ready = transfer_.device->Enqueue({}, uses);
  if (!ready.ok()) {
    static_cast<void>(WaitForAll(uses));
    target.buffer->WrittenOnce(nullptr);
    return ready.status();
  }
  target.buffer->WrittenOnce(*ready);
  if (*ready != nullptr) ready_.push_back(*std::move(ready));
  return absl::OkStatus();
}

void TransferJob::Failed(const absl::Status& why) {
  const absl::MutexLock lock(&mutex_);
  status_.Update(why);
}

void TransferJob::Complete(const absl::Status& passed) {
  range_ = ProfilerRange();
  result_.Update(passed);
  {
    const absl::MutexLock lock(&mutex_);
    result_.Update(status_);
  }
  std::move(transfer_.done)(std::move(result_));
}

}  // namespace ditserve
